-- The index: searchable metadata of the observations this node can open. No measured value is in it, and all of it can
-- be rebuilt from the chain and the vault.

CREATE TABLE observation (
    id           TEXT    NOT NULL PRIMARY KEY, -- FHIR logical id
    subject_key  BLOB    NOT NULL,             -- id of the key that opens it: what a permit names
    subject      TEXT    NOT NULL,
    code         TEXT    NOT NULL,
    effective_ms INTEGER NOT NULL,
    received_ms  INTEGER NOT NULL,
    device       TEXT    NOT NULL,
    boot         TEXT    NOT NULL,
    seq          INTEGER NOT NULL,             -- the bits of an unsigned number
    ordinal      INTEGER NOT NULL,             -- which observation of the reading
    bundle       BLOB    NOT NULL,
    cid          TEXT    NOT NULL,
    entry        INTEGER NOT NULL,             -- which reading of the bundle
    height       INTEGER NOT NULL,             -- block of the commitment
    visible_from INTEGER NOT NULL,             -- first projected height at which queries see it
    UNIQUE (device, boot, seq, ordinal)
) STRICT;

CREATE INDEX observation_by_time ON observation (subject_key, effective_ms, id, visible_from);
CREATE INDEX observation_by_code ON observation (subject_key, code, effective_ms, id, visible_from);

-- What a final bundle contained and was not indexed. entry -1 is the bundle as a whole.
CREATE TABLE rejected (
    bundle   BLOB    NOT NULL,
    entry    INTEGER NOT NULL,
    reason   TEXT    NOT NULL,
    height   INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    PRIMARY KEY (bundle, entry)
) STRICT;

CREATE INDEX rejected_by_reason ON rejected (reason, attempts, height);

-- projected: height up to which the chain is projected; duplicates: second occurrences of an observation.
CREATE TABLE progress (
    name  TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;

INSERT INTO progress (name, value) VALUES ('projected', 0), ('duplicates', 0);
