//! Merkle trees over digests, and the path that proves one leaf is in the root (shape of RFC 6962, odd nodes promoted).

use serde::{Deserialize, Serialize};

use crate::canonical::{Digest, Domain};

/// The root over the leaves; of no leaves it is [`Digest::ZERO`].
#[must_use]
pub fn root(leaves: &[Digest]) -> Digest {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = parents(&level);
    }
    // A lone leaf is wrapped once, so that a root never equals a leaf.
    level.first().map_or(Digest::ZERO, |top| {
        Digest::of(Domain::MERKLE_NODE, &[&[2], &count(leaves.len()), top.as_bytes()])
    })
}

/// The siblings on the way from one leaf to the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Path {
    /// Position of the leaf, from 0.
    pub index: u32,
    /// How many leaves the tree has.
    pub leaves: u32,
    /// Siblings from the bottom up; a level in which the node has none contributes nothing.
    pub siblings: Vec<Digest>,
}

impl Path {
    /// The path of leaf `index`; `None` if there is no such leaf.
    #[must_use]
    pub fn of(leaves: &[Digest], index: usize) -> Option<Self> {
        if index >= leaves.len() {
            return None;
        }
        let mut siblings = Vec::new();
        let (mut level, mut at) = (leaves.to_vec(), index);
        while level.len() > 1 {
            siblings.extend(level.get(at ^ 1));
            level = parents(&level);
            at /= 2;
        }
        Some(Self {
            index: u32::try_from(index).ok()?,
            leaves: u32::try_from(leaves.len()).ok()?,
            siblings,
        })
    }

    /// The root this path leads to from `leaf`; `None` if the path is not of the one possible shape.
    #[must_use]
    pub fn root(&self, leaf: Digest) -> Option<Digest> {
        if self.index >= self.leaves {
            return None;
        }
        let (mut at, mut width, mut node) = (self.index, self.leaves, leaf);
        let mut siblings = self.siblings.iter();
        while width > 1 {
            node = match (at % 2, at ^ 1 < width) {
                (0, true) => parent(&node, siblings.next()?),
                (0, false) => node,
                _ => parent(siblings.next()?, &node),
            };
            at /= 2;
            width = width.div_ceil(2);
        }
        if siblings.next().is_some() {
            return None;
        }
        Some(Digest::of(
            Domain::MERKLE_NODE,
            &[&[2], &count(usize::try_from(self.leaves).ok()?), node.as_bytes()],
        ))
    }
}

fn parents(level: &[Digest]) -> Vec<Digest> {
    level
        .chunks(2)
        .map(|pair| {
            if let [left, right] = pair {
                parent(left, right)
            } else {
                pair[0]
            }
        })
        .collect()
}

fn parent(left: &Digest, right: &Digest) -> Digest {
    Digest::of(Domain::MERKLE_NODE, &[&[1], left.as_bytes(), right.as_bytes()])
}

fn count(leaves: usize) -> [u8; 8] {
    // usize is at most 64 bits on every target we build for.
    (leaves as u64).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaves(n: usize) -> Vec<Digest> {
        (0..n)
            .map(|i| Digest::of(Domain::READING, &[&i.to_be_bytes()]))
            .collect()
    }

    proptest! {
        #[test]
        fn every_leaf_proves_itself_and_no_other(n in 1usize..70, i: usize, j: usize) {
            let (leaves, i, j) = (leaves(n), i % n, j % n);
            let path = Path::of(&leaves, i).expect("i < n");
            prop_assert_eq!(path.root(leaves[i]), Some(root(&leaves)));
            if i != j {
                prop_assert_ne!(path.root(leaves[j]), Some(root(&leaves)));
                let moved = Path { index: u32::try_from(j).expect("small"), ..path };
                prop_assert_ne!(moved.root(leaves[i]), Some(root(&leaves)));
            }
        }

        #[test]
        fn another_count_is_another_root(n in 1usize..40) {
            prop_assert_ne!(root(&leaves(n)), root(&leaves(n + 1)));
        }
    }
}
