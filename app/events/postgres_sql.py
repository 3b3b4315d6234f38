"""All SQL of the Postgres store but the function ``append_batch``, which is in the migrations."""

from __future__ import annotations

import itertools

SELECT_LOG_ROW = "SELECT incarnation FROM log"

INSERT_LOG = """
    INSERT INTO log (id, incarnation, created) VALUES (1, $1, log_clock())
    ON CONFLICT (id) DO NOTHING"""

ADOPT = "UPDATE log SET incarnation = $1 RETURNING id"

ADOPT_IF_EMPTY = """
    UPDATE log SET incarnation = $1 WHERE NOT EXISTS (SELECT FROM event) RETURNING id"""

ERASE = """
    UPDATE event SET data = e.data, salt = e.salt
    FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bigint[], $5::integer[])
        AS e(data, salt, seq, stream_id, version)
    WHERE event.seq = e.seq AND event.stream_id = e.stream_id AND event.version = e.version"""

SELECT_HEAD = "SELECT coalesce(max(seq), 0) FROM event"

#: An event but for its data, as `app.events.envelope.Event` has it.
SELECT_HEADER = """
    SELECT e.seq, s.name, e.version, t.name, e.schema, e.time, e.actor, e.request, e.run, e.cause
    FROM event e JOIN stream s ON s.id = e.stream_id JOIN event_type t ON t.id = e.type_id
    WHERE e.seq = $1"""

SELECT_LAST_STREAM = "SELECT coalesce(max(id), 0) FROM stream"

SELECT_TYPES = "SELECT name, id FROM event_type"

SELECT_STREAM_IDS = "SELECT name, id FROM stream WHERE name = ANY ($1::text[])"

SELECT_STREAM_NAMES = "SELECT id, name FROM stream WHERE id = ANY ($1::bigint[])"

SELECT_VERSION = """
    SELECT coalesce(max(version), 0) FROM event
    WHERE stream_id = (SELECT id FROM stream WHERE name = $1)"""

SELECT_VERSIONS = """
    SELECT s.name, s.id, coalesce((SELECT max(version) FROM event WHERE stream_id = s.id), 0)
    FROM stream s WHERE s.name = ANY ($1::text[])"""

EVENT_COLUMNS = "seq, stream_id, version, type_id, schema, time, actor, request, run, cause, data"

# No joins: names of streams and types are known here, or asked for together.
SELECT_LOG = f"""
    SELECT {EVENT_COLUMNS} FROM event
    WHERE seq > $1 AND seq <= $2 AND ($4::integer[] IS NULL OR type_id = ANY ($4))
    ORDER BY seq LIMIT $3"""

SELECT_IN_STREAM = f"""
    SELECT {EVENT_COLUMNS} FROM event
    WHERE stream_id = $5 AND version > $1 AND version <= $2
        AND ($4::integer[] IS NULL OR type_id = ANY ($4))
    ORDER BY version LIMIT $3"""

SELECT_ROWS = f"""
    SELECT {EVENT_COLUMNS}, salt, leaf FROM event WHERE seq > $1 ORDER BY seq LIMIT $2"""

SELECT_LOG_ROWS = SELECT_LOG.replace(EVENT_COLUMNS, EVENT_COLUMNS + ", salt, leaf")

SELECT_ROWS_IN_STREAM = SELECT_IN_STREAM.replace(EVENT_COLUMNS, EVENT_COLUMNS + ", salt, leaf")

SELECT_LEAVES = "SELECT leaf FROM event WHERE seq > $1 AND seq <= $2 ORDER BY seq"

REQUEST_COLUMNS = (
    "id, stream, state, epoch, worker, until, priority, queued, model, deadline, run, tenant"
)

_OPEN = "state NOT IN ('finished', 'failed', 'cancelled')"

SELECT_OPEN_REQUESTS = f"SELECT {REQUEST_COLUMNS} FROM request WHERE {_OPEN} ORDER BY queued"

SELECT_REQUESTS = f"SELECT {REQUEST_COLUMNS} FROM request WHERE id = ANY ($1::text[])"

SELECT_COMMANDS = "SELECT id, seq, version FROM command WHERE id = ANY ($1::text[])"

_MAY_CLAIM = """
    state = 'queued' AND (model IS NULL OR model = ANY ($1::text[]))
        AND ($4::integer IS NULL OR priority > $4)"""

_RANK = "CASE WHEN $3::boolean THEN -priority ELSE 0 END"

SELECT_CLAIMABLE = f"""
    SELECT {REQUEST_COLUMNS} FROM request WHERE {_OPEN} AND {_MAY_CLAIM}
    ORDER BY {_RANK}, queued LIMIT $2"""

#: The same by shares of tenants. It looks at no more than $2 requests of each.
SELECT_CLAIMABLE_FAIRLY = f"""
    WITH RECURSIVE waiting (tenant) AS (
        (SELECT tenant FROM request WHERE state = 'queued' ORDER BY tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT r.tenant FROM request r WHERE r.state = 'queued' AND r.tenant > w.tenant
                ORDER BY r.tenant LIMIT 1)
        FROM waiting w WHERE w.tenant IS NOT NULL
    ), held (tenant, count) AS (
        SELECT tenant, count(*) FROM request WHERE worker IS NOT NULL GROUP BY tenant
    )
    SELECT {", ".join(f"own.{name}" for name in REQUEST_COLUMNS.split(", "))}
    FROM waiting LEFT JOIN held USING (tenant) CROSS JOIN LATERAL (
        SELECT *, {_RANK} AS rank, row_number() OVER (ORDER BY {_RANK}, queued) AS place
        FROM (SELECT * FROM request WHERE tenant = waiting.tenant AND {_MAY_CLAIM}
              ORDER BY {_RANK}, queued LIMIT $2) AS first
    ) AS own
    ORDER BY own.rank, own.place + coalesce(held.count, 0), own.queued LIMIT $2"""

SELECT_LOST = f"""
    SELECT {REQUEST_COLUMNS} FROM request
    WHERE {_OPEN} AND state IN ('claimed', 'running', 'preempted')
        AND CASE WHEN $1::text IS NULL THEN until < coalesce($2::bigint, log_clock())
            ELSE worker = $1 END
    ORDER BY queued"""

HEARTBEAT = f"""
    UPDATE request SET until = coalesce($3::bigint, log_clock()) + $2
    WHERE {_OPEN} AND worker = $1 RETURNING id, epoch, queued"""

SELECT_LEASES = f"""
    SELECT id, stream, state, epoch, worker, until FROM request
    WHERE ($1::text IS NULL OR stream = $1) AND (NOT $2::boolean OR {_OPEN}) ORDER BY queued"""

COUNT_WAITING = """
    SELECT count(*) FILTER (WHERE tenant = $1), count(*) FROM request WHERE state = 'queued'"""

BEAT = """
    INSERT INTO node (name, until) VALUES ($1, coalesce($3::bigint, log_clock()) + $2)
    ON CONFLICT (name) DO UPDATE SET until = excluded.until"""

LEAVE = "DELETE FROM node WHERE name = $1"

SELECT_NODES = "SELECT name FROM node WHERE until > coalesce($1::bigint, log_clock())"

UPSERT_REQUEST = f"""
    INSERT INTO request ({REQUEST_COLUMNS})
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, epoch = excluded.epoch,
        worker = excluded.worker, until = excluded.until"""

SELECT_REMEMBERED = """
    SELECT id, seq, version, time FROM command WHERE id > $1 ORDER BY id LIMIT $2"""

# By the server's clock, which wrote them: one of a node may be years ahead.
PRUNE_COMMANDS = "DELETE FROM command WHERE time < (SELECT log_clock()) - $1"

PRUNE_BATCHES = "DELETE FROM batch WHERE time < (SELECT log_clock()) - $1"

PRUNE_NODES = "DELETE FROM node WHERE until < (SELECT log_clock()) - $1"

#: Types of the arguments of ``append_batch``, those of `Call.arguments`. "lines" is a list of texts
#: that hold no line ends.
_APPEND_TYPES = """
    text bigint bigint bigint integer
    text[] bigint[] integer[] text[] text[] integer[] text[] text[] text[] jsonb
    integer[] integer[] integer[] integer[] integer[] integer[] integer[] text[] bigint[]
    integer[] integer[] integer[] integer[] bigint[] integer[] text[] text[] text[]
    bytea integer[] integer[] bytea lines
    integer[] integer[] boolean[] integer[] integer[] text[] bigint[] text[]"""


def _argument(place: int, type: str) -> str:
    if type == "lines":
        return f"string_to_array(${place}, E'\\n')"
    return f"${place}::text::{type}" if type.endswith("[]") else f"${place}"


#: Each list comes as one text: asyncpg would code it element by element, and ask of each whether
#: it is a list itself.
APPEND_BATCH = f"""
    SELECT append_batch({", ".join(map(_argument, itertools.count(1), _APPEND_TYPES.split()))})"""
