-- Archived events. A segment is an object (app/events/segment.py) that holds events in place of the
-- table `event`; which event is where is decided by one transaction.

CREATE TABLE segment (
    id     INTEGER PRIMARY KEY,
    object TEXT    NOT NULL UNIQUE,  -- key in the object store
    sha256 TEXT    NOT NULL,         -- of the object, hex
    bytes  INTEGER NOT NULL,
    first  INTEGER NOT NULL,         -- lowest seq in it
    last   INTEGER NOT NULL,         -- highest seq in it; only some between are
    events INTEGER NOT NULL,
    types  TEXT    NOT NULL          -- JSON list of the event types in it
) STRICT;

CREATE INDEX segment_range ON segment (first, last);

CREATE TABLE segment_stream (
    stream_id  INTEGER NOT NULL,
    segment_id INTEGER NOT NULL,
    first      INTEGER NOT NULL,     -- lowest version in it
    last       INTEGER NOT NULL,     -- highest version in it
    PRIMARY KEY (stream_id, segment_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX segment_streams ON segment_stream (segment_id);

-- Objects that no segment refers to: noted before they are stored, and when they are dropped.
CREATE TABLE segment_upload (
    object TEXT    PRIMARY KEY,
    doomed INTEGER NOT NULL          -- 1: it is being deleted, and no segment may begin to use it
) STRICT, WITHOUT ROWID;

-- Counts the moves between `event` and segments, so that a reader notices one between two looks.
CREATE TABLE archive (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    generation INTEGER NOT NULL
) STRICT;

INSERT INTO archive (id, generation) VALUES (1, 0);
