-- What gateways say is missing of devices, one row a report: of a device the newest holds. No measured value is in it, and
-- all of it can be rebuilt from the chain and the vault.
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
    PRIMARY KEY (bundle, entry)
) STRICT;

CREATE INDEX gap_report_by_device ON gap_report (subject_key, device, reported_ms, visible_from);
CREATE INDEX gap_report_by_height ON gap_report (height);
