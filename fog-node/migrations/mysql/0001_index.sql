-- The index in MySQL or MariaDB, as in SQLite. Texts are VARBINARY: they compare byte by byte, without a collation and without
-- padding, as SQLite compares them.

CREATE TABLE observation (
    id           VARBINARY(64)  NOT NULL PRIMARY KEY, -- FHIR logical id: a digest of device, boot, seq and ordinal
    subject_key  VARBINARY(32)  NOT NULL,             -- id of the key that opens it: what a permit names
    subject      VARBINARY(64)  NOT NULL,
    code         VARBINARY(64)  NOT NULL,
    effective_ms BIGINT         NOT NULL,
    received_ms  BIGINT         NOT NULL,
    device       VARBINARY(128) NOT NULL,
    boot         VARBINARY(64)  NOT NULL,
    seq          BIGINT         NOT NULL,             -- the bits of an unsigned number
    ordinal      BIGINT         NOT NULL,             -- which observation of the reading
    bundle       VARBINARY(32)  NOT NULL,
    cid          VARBINARY(128) NOT NULL,
    entry        BIGINT         NOT NULL,             -- which reading of the bundle
    height       BIGINT         NOT NULL,             -- block of the commitment
    visible_from BIGINT         NOT NULL,             -- first projected height at which queries see it
    tag          VARBINARY(32)  NOT NULL              -- over all of the above, with the key of this node
) ENGINE = InnoDB;

CREATE INDEX observation_by_time ON observation (subject_key, effective_ms, id, visible_from);
CREATE INDEX observation_by_code ON observation (subject_key, code, effective_ms, id, visible_from);
CREATE INDEX observation_by_height ON observation (height);
CREATE INDEX observation_by_reading ON observation (device, boot, seq);

-- What gateways say is missing of devices, one row a report.
CREATE TABLE gap_report (
    bundle       VARBINARY(32)  NOT NULL,
    entry        BIGINT         NOT NULL,             -- which of the bundle's contents: the readings come first
    subject_key  VARBINARY(32)  NOT NULL,             -- id of the key that opens it: what a permit names
    device       VARBINARY(128) NOT NULL,
    reported_ms  BIGINT         NOT NULL,
    ranges       BIGINT         NOT NULL,             -- how many ranges are missing; 0 when all has come
    report       MEDIUMBLOB     NOT NULL,
    height       BIGINT         NOT NULL,             -- block of the commitment
    visible_from BIGINT         NOT NULL,             -- first projected height at which queries see it
    tag          VARBINARY(32)  NOT NULL,
    PRIMARY KEY (bundle, entry)
) ENGINE = InnoDB;

CREATE INDEX gap_report_by_device ON gap_report (subject_key, device, reported_ms, visible_from);
CREATE INDEX gap_report_by_height ON gap_report (height);

-- What a final bundle contained and was not indexed. entry -1 is the bundle as a whole.
CREATE TABLE rejected (
    bundle   VARBINARY(32) NOT NULL,
    entry    BIGINT        NOT NULL,
    reason   VARBINARY(64) NOT NULL,
    height   BIGINT        NOT NULL,
    attempts BIGINT        NOT NULL,
    PRIMARY KEY (bundle, entry)
) ENGINE = InnoDB;

CREATE INDEX rejected_by_reason ON rejected (reason, attempts, height);

-- One row. owner and tag are empty until a node has made the index its own.
CREATE TABLE progress (
    name         VARBINARY(16) NOT NULL PRIMARY KEY,
    projected    BIGINT        NOT NULL,              -- height up to which the chain is projected
    observations BIGINT        NOT NULL,              -- rows that are there
    gap_reports  BIGINT        NOT NULL,
    duplicates   BIGINT        NOT NULL,              -- second occurrences of an observation
    owner        VARBINARY(32) NOT NULL,              -- which node's key the tags are made with
    tag          VARBINARY(32) NOT NULL               -- over projected, observations and gap_reports
) ENGINE = InnoDB;

INSERT INTO progress (name, projected, observations, gap_reports, duplicates, owner, tag)
VALUES ('index', 0, 0, 0, 0, x'', x'');
