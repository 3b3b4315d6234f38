-- The log. Only `event`, `stream`, `event_type` and `log` are truth; `request` and `command` are
-- kept by the same transactions and can be computed from the events.

CREATE TABLE log (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    incarnation TEXT    NOT NULL,  -- id of this log's life; cursors of clients carry it
    created     INTEGER NOT NULL   -- ns since the epoch
) STRICT;

CREATE TABLE stream (
    id   INTEGER PRIMARY KEY,
    name TEXT    NOT NULL UNIQUE   -- thread/<id>, request/<id>, worker/<name>, user/<id>, log
) STRICT;

CREATE TABLE event_type (
    id   INTEGER PRIMARY KEY,
    name TEXT    NOT NULL UNIQUE
) STRICT;

CREATE TABLE event (
    seq       INTEGER PRIMARY KEY,  -- given by the writer: 1, 2, 3 ... without gaps
    stream_id INTEGER NOT NULL,
    version   INTEGER NOT NULL,     -- 1, 2, 3 ... without gaps in its stream
    type_id   INTEGER NOT NULL,
    schema    INTEGER NOT NULL,
    time      INTEGER NOT NULL,     -- ns since the epoch
    actor     TEXT    NOT NULL,
    request   TEXT,
    run       TEXT,
    cause     TEXT,
    data      BLOB    NOT NULL,     -- UTF-8 JSON, verbatim
    salt      BLOB    NOT NULL,     -- 16 random bytes
    leaf      BLOB    NOT NULL,     -- SHA-256(header || SHA-256(salt || data))
    UNIQUE (stream_id, version)
) STRICT;

-- The request queue: a projection written in the appending transaction.
CREATE TABLE request (
    id       TEXT    PRIMARY KEY,
    stream   TEXT    NOT NULL,
    state    TEXT    NOT NULL,
    epoch    INTEGER NOT NULL,      -- raised by each claim
    worker   TEXT,
    until    INTEGER,               -- the lease ends, ns since the epoch
    priority INTEGER NOT NULL,
    queued   INTEGER NOT NULL,      -- seq of request.queued
    model    TEXT,
    deadline INTEGER,
    run      TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX request_open ON request (queued)
    WHERE state NOT IN ('finished', 'failed', 'cancelled');

CREATE INDEX request_stream ON request (stream);

-- Commands of clients that took effect, so that sending one again changes nothing.
CREATE TABLE command (
    id      TEXT    PRIMARY KEY,
    seq     INTEGER NOT NULL,
    version INTEGER NOT NULL,
    time    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX command_time ON command (time);

-- For people with a database shell.
CREATE VIEW events AS
SELECT e.seq, s.name AS stream, e.version, t.name AS type, e.schema,
       datetime(e.time / 1000000000, 'unixepoch') AS time,
       e.actor, e.request, e.run, e.cause, CAST(e.data AS TEXT) AS data
FROM event e JOIN stream s ON s.id = e.stream_id JOIN event_type t ON t.id = e.type_id;
