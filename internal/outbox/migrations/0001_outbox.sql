-- One row: identity, what is published, and counters that never need a scan. It
-- says how things stood at last_seq: rows after it were appended since and are
-- counted at the start, so that an append need not write it.
CREATE TABLE state (
    one                  INTEGER PRIMARY KEY CHECK (one = 1),
    outbox_id            BLOB    NOT NULL,            -- the transactional ID derives from it
    clean                INTEGER NOT NULL DEFAULT 1,  -- 0 while a process has it open
    delivery             TEXT    NOT NULL DEFAULT '', -- the mode that published last
    last_seq             INTEGER NOT NULL DEFAULT 0,  -- highest seq given; never given again, though rows go
    indexed_seq          INTEGER NOT NULL DEFAULT 0,  -- rows up to it are in event_ids and correlation_ids
    published_seq        INTEGER NOT NULL DEFAULT 0,  -- every seq up to it is published, parked ones aside
    slim_seq             INTEGER NOT NULL DEFAULT 0,  -- payloads up to it are gone (history window)
    pruned_seq           INTEGER NOT NULL DEFAULT 0,  -- rows up to it are gone (deduplication window)
    pending_rows         INTEGER NOT NULL DEFAULT 0,
    pending_bytes        INTEGER NOT NULL DEFAULT 0,
    parked_rows          INTEGER NOT NULL DEFAULT 0,
    parked_bytes         INTEGER NOT NULL DEFAULT 0,
    parkings             INTEGER NOT NULL DEFAULT 0,  -- how often a result was set aside, ever
    held_rows            INTEGER NOT NULL DEFAULT 0,
    held_bytes           INTEGER NOT NULL DEFAULT 0,
    watermark_topic      BLOB,                        -- topic ID; with the next two: where our newest watermark lies
    watermark_partition  INTEGER NOT NULL DEFAULT 0,
    watermark_offset     INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE results (
    seq             INTEGER PRIMARY KEY,
    event_id        BLOB    NOT NULL,
    correlation_id  BLOB    NOT NULL,
    workflow_id     TEXT    NOT NULL,
    workflow_run_id TEXT    NOT NULL,
    status          TEXT    NOT NULL,
    accepted_at     INTEGER NOT NULL, -- microseconds since 1970, UTC
    timestamp       TEXT    NOT NULL, -- RFC 3339, UTC
    size            INTEGER NOT NULL, -- bytes that count against the limits
    digest          BLOB    NOT NULL,
    traceparent     TEXT    NOT NULL,
    tracestate      TEXT    NOT NULL,
    error           TEXT,
    result          BLOB              -- NULL once the history window is over
);

-- The indexes of the two IDs. They are tables of their own because rows come into
-- them in bulk, sorted: IDs are random, and one at a time each would dirty a page.
CREATE TABLE event_ids (
    event_id BLOB    PRIMARY KEY,
    seq      INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE correlation_ids (
    correlation_id BLOB    NOT NULL,
    seq            INTEGER NOT NULL,
    PRIMARY KEY (correlation_id, seq)
) WITHOUT ROWID;

CREATE TABLE parked (
    seq       INTEGER PRIMARY KEY,
    reason    TEXT    NOT NULL,
    parked_at INTEGER NOT NULL -- microseconds
);

-- One row per publication. placements: see encodePlacements.
CREATE TABLE publications (
    through      INTEGER PRIMARY KEY, -- highest seq of it
    published_at INTEGER NOT NULL,    -- microseconds
    topic        TEXT    NOT NULL,
    placements   BLOB    NOT NULL
);

-- One row per start that accepted results: who gave the seqs from first_seq on.
CREATE TABLE generations (
    first_seq  INTEGER PRIMARY KEY,
    generation BLOB    NOT NULL,
    started_at INTEGER NOT NULL
);
