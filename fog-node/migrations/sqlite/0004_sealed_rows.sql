-- Rows carry a tag that only this node can make, and the index says how many there are. What was projected before is
-- projected anew.
DROP TABLE observation;
DROP TABLE gap_report;
DROP TABLE rejected;
DROP TABLE progress;

CREATE TABLE observation (
    id           TEXT    NOT NULL PRIMARY KEY, -- FHIR logical id: a digest of device, boot, seq and ordinal
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
    tag          BLOB    NOT NULL              -- over all of the above, with the key of this node
) STRICT;

CREATE INDEX observation_by_time ON observation (subject_key, effective_ms, id, visible_from);
CREATE INDEX observation_by_code ON observation (subject_key, code, effective_ms, id, visible_from);
CREATE INDEX observation_by_height ON observation (height);
CREATE INDEX observation_by_reading ON observation (device, boot, seq);

CREATE TABLE gap_report (
    bundle       BLOB    NOT NULL,
    entry        INTEGER NOT NULL,             -- which of the bundle's contents: the readings come first
    subject_key  BLOB    NOT NULL,             -- id of the key that opens it: what a permit names
    device       TEXT    NOT NULL,
    reported_ms  INTEGER NOT NULL,
    ranges       INTEGER NOT NULL,             -- how many ranges are missing; 0 when all has come
    report       BLOB    NOT NULL,
    height       INTEGER NOT NULL,             -- block of the commitment
    visible_from INTEGER NOT NULL,             -- first projected height at which queries see it
    tag          BLOB    NOT NULL,
    PRIMARY KEY (bundle, entry)
) STRICT;

CREATE INDEX gap_report_by_device ON gap_report (subject_key, device, reported_ms, visible_from);
CREATE INDEX gap_report_by_height ON gap_report (height);

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

-- One row. owner and tag are empty until a node has made the index its own.
CREATE TABLE progress (
    name         TEXT    NOT NULL PRIMARY KEY,
    projected    INTEGER NOT NULL,             -- height up to which the chain is projected
    observations INTEGER NOT NULL,             -- rows that are there
    gap_reports  INTEGER NOT NULL,
    duplicates   INTEGER NOT NULL,             -- second occurrences of an observation
    owner        BLOB    NOT NULL,             -- which node's key the tags are made with
    tag          BLOB    NOT NULL              -- over projected, observations and gap_reports
) STRICT;

INSERT INTO progress (name, projected, observations, gap_reports, duplicates, owner, tag)
VALUES ('index', 0, 0, 0, 0, x'', x'');
