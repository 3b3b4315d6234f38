-- Archived events. A segment is an object (app/events/segment.py) that holds events in place of the
-- table `event`; which event is where is decided by one transaction.

CREATE TABLE segment (
    id     bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    object text    NOT NULL UNIQUE,  -- key in the object store
    sha256 text    NOT NULL,         -- of the object, hex
    bytes  bigint  NOT NULL,
    first  bigint  NOT NULL,         -- lowest seq in it
    last   bigint  NOT NULL,         -- highest seq in it; only some between are
    events integer NOT NULL,
    types  text    NOT NULL          -- JSON list of the event types in it
);

CREATE INDEX segment_range ON segment (first, last);

CREATE TABLE segment_stream (
    stream_id  bigint  NOT NULL,
    segment_id bigint  NOT NULL,
    first      integer NOT NULL,     -- lowest version in it
    last       integer NOT NULL,     -- highest version in it
    PRIMARY KEY (stream_id, segment_id)
);

CREATE INDEX segment_streams ON segment_stream (segment_id);

-- Objects that no segment refers to: noted before they are stored, and when they are dropped.
CREATE TABLE segment_upload (
    object text    PRIMARY KEY,
    doomed boolean NOT NULL          -- it is being deleted, and no segment may begin to use it
);

-- Counts the moves between `event` and segments, so that a reader notices one between two looks.
CREATE TABLE archive (
    id         integer PRIMARY KEY CHECK (id = 1),
    generation bigint  NOT NULL
);

INSERT INTO archive (id, generation) VALUES (1, 0);
