-- The scrub compares the rows of one block with what the block gives.
CREATE INDEX observation_by_height ON observation (height);
