//! fog-node
