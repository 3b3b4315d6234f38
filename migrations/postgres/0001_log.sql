-- The log. Only `event`, `stream`, `event_type` and `log` are truth; `request` and `command` are
-- kept by the same transactions and can be computed from the events. All tables live in the
-- connection's current schema.

CREATE TABLE log (
    id          integer PRIMARY KEY CHECK (id = 1),
    incarnation text    NOT NULL,  -- id of this log's life; cursors of clients carry it
    created     bigint  NOT NULL   -- ns since the epoch
);

CREATE TABLE stream (
    id   bigint PRIMARY KEY,
    name text   NOT NULL UNIQUE    -- thread/<id>, request/<id>, worker/<name>, user/<id>, log
);

CREATE TABLE event_type (
    id   integer PRIMARY KEY,
    name text    NOT NULL UNIQUE
);

-- Wide columns first, so that no row has holes. Rows are only ever added, so vacuum has nothing to
-- do but freeze what is new: it is told to do so after every million, not after a fifth of the table.
CREATE TABLE event (
    seq       bigint  NOT NULL,    -- given under the append lock: 1, 2, 3 ... without gaps
    stream_id bigint  NOT NULL,
    time      bigint  NOT NULL,    -- ns since the epoch
    version   integer NOT NULL,    -- 1, 2, 3 ... without gaps in its stream
    type_id   integer NOT NULL,
    schema    integer NOT NULL,
    actor     text    NOT NULL,
    request   text,
    run       text,
    cause     text,
    data      bytea   NOT NULL,    -- UTF-8 JSON, verbatim
    salt      bytea   NOT NULL,    -- 16 random bytes
    leaf      bytea   NOT NULL,    -- SHA-256(header || SHA-256(salt || data))
    CONSTRAINT event_pkey PRIMARY KEY (seq),
    CONSTRAINT event_version UNIQUE (stream_id, version)
) WITH (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 1000000,
    autovacuum_freeze_min_age = 0,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

-- The request queue: a projection written in the appending transaction.
CREATE TABLE request (
    id       text    PRIMARY KEY,
    stream   text    NOT NULL,
    state    text    NOT NULL,
    epoch    integer NOT NULL,     -- raised by each claim
    worker   text,
    until    bigint,               -- the lease ends, ns since the epoch, this server's clock
    priority integer NOT NULL,
    queued   bigint  NOT NULL,     -- seq of request.queued
    model    text,
    deadline bigint,
    run      text,
    tenant   text    NOT NULL DEFAULT ''  -- whom it is for: tenants share the workers evenly
) WITH (fillfactor = 70);

CREATE INDEX request_open ON request (queued)
    WHERE state NOT IN ('finished', 'failed', 'cancelled');

CREATE INDEX request_stream ON request (stream);

CREATE INDEX request_waiting ON request (tenant, priority DESC, queued) WHERE state = 'queued';

CREATE INDEX request_held ON request (worker) WHERE worker IS NOT NULL;

-- Commands of clients that took effect, so that sending one again changes nothing.
CREATE TABLE command (
    id      text    PRIMARY KEY,
    seq     bigint  NOT NULL,
    version integer NOT NULL,
    time    bigint  NOT NULL
);

CREATE INDEX command_time ON command (time);

-- The last batch of each writing process, so that one whose answer was lost can be sent again.
CREATE TABLE batch (
    writer text   PRIMARY KEY,
    number bigint NOT NULL,
    result text   NOT NULL,
    time   bigint NOT NULL         -- ns since the epoch
) WITH (fillfactor = 50);

-- Serving processes and workers that are alive.
CREATE TABLE node (
    name  text   PRIMARY KEY,
    until bigint NOT NULL          -- ns since the epoch, this server's clock
) WITH (fillfactor = 50);

-- For people with a database shell.
CREATE VIEW events AS
SELECT e.seq, s.name AS stream, e.version, t.name AS type, e.schema,
       to_timestamp(e.time / 1e9) AS time,
       e.actor, e.request, e.run, e.cause, convert_from(e.data, 'UTF8') AS data
FROM event e JOIN stream s ON s.id = e.stream_id JOIN event_type t ON t.id = e.type_id;

-- ------------------------------------------------------------------------------------ functions

CREATE FUNCTION log_clock() RETURNS bigint LANGUAGE sql VOLATILE
AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1e9)::bigint $$;

-- Who appends holds this lock from before it reads the end of the log until its commit is visible,
-- so the order of seq is the order of commit and of visibility.
CREATE FUNCTION log_lock() RETURNS void LANGUAGE sql VOLATILE
AS $$ SELECT pg_advisory_xact_lock(hashtextextended('everlog.append.' || current_schema(), 0)) $$;

-- Append events, each append for itself, in one round trip.
--
-- Lists of one kind are parallel; places in another list count from 1. A list whose values are all
-- the default may be empty.
--   p_streams, p_stream_ids      names, and ids where the caller knows them (else 0)
--   p_versions                   versions the caller has seen; -1: look it up. One that has been
--                                overtaken makes the call fail with a unique violation
--   p_heads                      names as they stand in JSON between quotes; none: as they are
--   p_types, p_type_ids          names and ids of event types
--   p_requests, p_commands       ids
--   p_actors                     names; e_actor has their places
--   p_data, p_salts              payloads, and 16 bytes for each event, in a row
--   p_moves                      [{state before: state after}, ...]; "" is "does not exist"
--   a_*                          one for each of p_appends. stream: by default in the order of
--                                p_streams; count: of its events (1); expected: version or -1; kind:
--                                0 append, 1 claim, 2 give back what ran out, 3 give back what
--                                `worker` holds; fence and epoch: the request and its epoch; lease:
--                                ns, for a claim
--   e_*                          one for each event. append: its place; step: place in it, from 0; by
--                                default one event for each append. type, actor: the first; time:
--                                p_time; start, size: where in p_data; tail: the header's JSON after
--                                the version; move: place in p_moves; owner: place of its request
--   q_*                          one for each request.queued
--
-- Gives JSON, whose meaning `app.events.postgres_call` knows: `x`, `y`: two numbers for each append
-- (its first seq and last version); if one was refused, for each a `code` (0 appended, 1 conflict,
-- 2 fenced, 3 closed, 4 illegal, 5 duplicate) and a `text`; ids, if the caller did not know one.
CREATE FUNCTION append_batch(
    p_writer text, p_number bigint, p_now bigint, p_time bigint, p_appends integer,
    p_streams text[], p_stream_ids bigint[], p_versions integer[], p_heads text[],
    p_types text[], p_type_ids integer[],
    p_requests text[], p_commands text[], p_actors text[], p_moves jsonb,
    a_stream integer[], a_count integer[], a_expected integer[], a_command integer[],
    a_fence integer[], a_epoch integer[], a_kind integer[], a_worker text[], a_lease bigint[],
    e_append integer[], e_step integer[],
    e_type integer[], e_schema integer[], e_time bigint[], e_actor integer[],
    e_request text[], e_run text[], e_cause text[],
    p_data bytea, e_start integer[], e_size integer[], p_salts bytea, e_tail text[],
    e_owner integer[], e_move integer[], e_fenced boolean[], e_queued integer[],
    q_priority integer[], q_model text[], q_deadline bigint[], q_tenant text[]
) RETURNS text LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off           -- a plan made while the table was small must not outlive that
AS $$
DECLARE
    held     CONSTANT text[] := ARRAY['claimed', 'running', 'preempted'];
    terminal CONSTANT text[] := ARRAY['finished', 'failed', 'cancelled'];
    v_last   record;
    v_seq    bigint;
    v_base   bigint;
    v_next   bigint;
    v_answer text;
    v_now    bigint := coalesce(p_now, log_clock());
    s_version integer[] := p_versions;
    r_state  text[] := '{}';   r_epoch integer[] := '{}';  r_worker text[] := '{}';
    r_until  bigint[] := '{}'; r_stream text[] := '{}';    r_event integer[] := '{}';
    r_seq    bigint[] := '{}'; r_changed boolean[] := '{}';
    c_seq    bigint[] := '{}'; c_version integer[] := '{}'; c_new boolean[] := '{}';
    v_unknown CONSTANT boolean := 0 = ANY (p_stream_ids) OR 0 = ANY (p_type_ids);
    v_free   CONSTANT boolean :=   -- nothing but versions to be looked at
        cardinality(a_expected) + cardinality(a_command) + cardinality(a_fence)
        + cardinality(a_kind) + cardinality(e_move) = 0;
    v_refused boolean := false;
    o_x      bigint[] := array_fill(0::bigint, ARRAY[p_appends]);
    o_y      bigint[] := o_x;  o_text text[] := array_fill(NULL::text, ARRAY[p_appends]);
    o_code   integer[] := array_fill(0, ARRAY[p_appends]);
    u_request integer[]; u_state text[]; u_worker text[]; u_until bigint[]; u_event integer[];
    i integer; j integer; s integer; f integer := 0; q integer; n integer; k integer := 0;
    v_first integer; v_end integer := 0; v_kind integer := 0; v_expected integer;
    state text; following text;
    code integer := 0; x bigint; y bigint; note text;
BEGIN
    PERFORM log_lock();

    SELECT head.seq, batch.number, batch.result INTO v_last
        FROM (SELECT coalesce(max(seq), 0) AS seq FROM event) AS head
        LEFT JOIN batch ON batch.writer = p_writer;
    IF v_last.number = p_number THEN
        RETURN v_last.result;      -- it was committed; only the answer was lost
    ELSIF v_last.number > p_number THEN
        RAISE EXCEPTION 'batch % of % came after batch %', p_number, p_writer, v_last.number;
    END IF;

    v_base := v_last.seq;
    v_seq := v_base;
    IF 0 = ANY (p_stream_ids) THEN
        SELECT array_agg(coalesce(nullif(given.id, 0), stream.id, 0) ORDER BY place)
            INTO p_stream_ids
            FROM unnest(p_streams, p_stream_ids) WITH ORDINALITY AS given(name, id, place)
            LEFT JOIN stream ON given.id = 0 AND stream.name = given.name;
    END IF;
    IF -1 = ANY (p_versions) THEN
        SELECT array_agg(CASE WHEN given.version >= 0 THEN given.version ELSE
                coalesce((SELECT max(version) FROM event WHERE stream_id = given.id), 0) END
                ORDER BY place)
            INTO s_version
            FROM unnest(p_stream_ids, p_versions) WITH ORDINALITY AS given(id, version, place);
    END IF;
    IF cardinality(p_requests) > 0 THEN
        SELECT array_agg(r.state ORDER BY place), array_agg(coalesce(r.epoch, 0) ORDER BY place),
               array_agg(r.worker ORDER BY place), array_agg(r.until ORDER BY place),
               array_agg(r.stream ORDER BY place), array_agg(0 ORDER BY place),
               array_agg(0::bigint ORDER BY place), array_agg(false ORDER BY place)
            INTO r_state, r_epoch, r_worker, r_until, r_stream, r_event, r_seq, r_changed
            FROM unnest(p_requests) WITH ORDINALITY AS given(id, place)
            LEFT JOIN request r ON r.id = given.id;
    END IF;
    IF cardinality(p_commands) > 0 THEN
        SELECT array_agg(c.seq ORDER BY place), array_agg(c.version ORDER BY place),
               array_agg(false ORDER BY place)
            INTO c_seq, c_version, c_new
            FROM unnest(p_commands) WITH ORDINALITY AS given(id, place)
            LEFT JOIN command c ON c.id = given.id;
    END IF;

    FOR i IN 1 .. p_appends LOOP
        s := coalesce(a_stream[i], i);
        v_first := v_end + 1;
        v_end := v_end + coalesce(a_count[i], 1);
        IF NOT v_free THEN
            code := 0; x := 0; y := 0; note := NULL; n := 0;
            k := coalesce(a_command[i], 0);
            f := coalesce(a_fence[i], 0);
            v_kind := coalesce(a_kind[i], 0);
            v_expected := coalesce(a_expected[i], -1);
            IF k > 0 AND c_seq[k] IS NOT NULL THEN
                code := 5; x := c_seq[k]; y := c_version[k];
            ELSIF v_expected >= 0 AND v_expected <> s_version[s] THEN
                code := 1; y := s_version[s];
            ELSIF f > 0 THEN
                state := r_state[f];
                IF state IS NULL THEN
                    code := 4; x := v_first;
                ELSIF state = ANY (terminal) THEN
                    code := 3; note := state;
                ELSIF r_epoch[f] <> a_epoch[i]
                        OR (v_kind = 0 AND r_worker[f] IS NULL)
                        OR (v_kind = 1 AND state <> 'queued')
                        OR (v_kind > 1 AND NOT state = ANY (held))
                        OR (v_kind = 2 AND r_until[f] >= v_now)
                        OR (v_kind = 3 AND r_worker[f] <> a_worker[i]) THEN
                    code := 2; x := r_epoch[f];
                END IF;
            END IF;

            IF code = 0 AND v_kind = 1 THEN
                r_state[f] := 'claimed'; r_epoch[f] := r_epoch[f] + 1; r_worker[f] := a_worker[i];
                r_until[f] := v_now + a_lease[i]; r_changed[f] := true;
            ELSIF code = 0 AND v_kind > 1 THEN
                r_state[f] := 'queued'; r_worker[f] := NULL; r_until[f] := NULL;
                r_changed[f] := true;
            ELSIF code = 0 AND cardinality(e_move) > 0 THEN
                FOR j IN v_first .. v_end LOOP
                    CONTINUE WHEN e_move[j] = 0;
                    q := e_owner[j];
                    state := r_state[q];
                    IF state = ANY (terminal) THEN
                        code := 3; note := state; EXIT;
                    END IF;
                    following := p_moves -> (e_move[j] - 1) ->> coalesce(state, '');
                    IF state IS NOT NULL AND e_fenced[j] AND f <> q THEN
                        code := 2; x := r_epoch[q]; EXIT;
                    ELSIF following IS NULL
                            OR (state IS NOT NULL AND r_stream[q] <> p_streams[s]) THEN
                        code := 4; x := j; note := state; EXIT;
                    END IF;
                    CONTINUE WHEN following = state;
                    n := n + 1;        -- to take it back if a later event of this append is refused
                    u_request[n] := q; u_state[n] := state; u_worker[n] := r_worker[q];
                    u_until[n] := r_until[q]; u_event[n] := r_event[q];
                    IF state IS NULL THEN
                        r_stream[q] := p_streams[s]; r_event[q] := j;
                        r_seq[q] := v_seq + j - v_first + 1;
                    END IF;
                    r_state[q] := following;
                    r_changed[q] := true;
                    IF NOT following = ANY (held) THEN
                        r_worker[q] := NULL; r_until[q] := NULL;
                    END IF;
                END LOOP;
                IF code <> 0 THEN
                    FOR j IN REVERSE n .. 1 LOOP
                        q := u_request[j]; r_state[q] := u_state[j]; r_worker[q] := u_worker[j];
                        r_until[q] := u_until[j]; r_event[q] := u_event[j];
                    END LOOP;
                END IF;
            END IF;
        END IF;

        IF code = 0 THEN
            n := v_end - v_first + 1;
            y := s_version[s] + n;
            s_version[s] := y;
            o_x[i] := v_seq + 1; o_y[i] := y;
            v_seq := v_seq + n;
            IF k > 0 THEN
                c_seq[k] := v_seq; c_version[k] := y; c_new[k] := true;
            END IF;
        ELSE
            o_code[i] := code; o_x[i] := x; o_y[i] := y; o_text[i] := note;
            v_refused := true;
        END IF;
    END LOOP;

    IF v_seq > v_base THEN
        IF 0 = ANY (p_stream_ids) THEN
            SELECT coalesce(max(id), 0) INTO v_next FROM stream;
            FOR s IN 1 .. cardinality(p_streams) LOOP
                IF p_stream_ids[s] = 0 AND s_version[s] > 0 THEN
                    v_next := v_next + 1;
                    p_stream_ids[s] := v_next;
                    INSERT INTO stream (id, name) VALUES (v_next, p_streams[s]);
                END IF;
            END LOOP;
        END IF;
        IF 0 = ANY (p_type_ids) THEN
            INSERT INTO event_type (id, name)
                SELECT (SELECT coalesce(max(id), 0) FROM event_type) + row_number() OVER (), name
                FROM unnest(p_types) AS given(name)
                WHERE NOT EXISTS (SELECT FROM event_type t WHERE t.name = given.name);
            SELECT array_agg(t.id ORDER BY place) INTO p_type_ids
                FROM unnest(p_types) WITH ORDINALITY AS given(name, place)
                JOIN event_type t ON t.name = given.name;
        END IF;
        IF cardinality(p_heads) = 0 THEN
            p_heads := p_streams;
        END IF;
        INSERT INTO event (seq, stream_id, time, version, type_id, schema, actor, request, run,
                           cause, data, salt, leaf)
            SELECT e.seq, p_stream_ids[e.stream], coalesce(e.time, p_time), e.version,
                   p_type_ids[coalesce(e.type, 1)], coalesce(e.schema, 1),
                   p_actors[coalesce(e.actor, 1)],
                   e.request, e.run, e.cause, e.data, e.salt,
                   sha256(convert_to(concat('[', e.seq, ',"', p_heads[e.stream], '",', e.version,
                                            e.tail), 'UTF8')
                          || sha256(e.salt || e.data))
            FROM (SELECT given.*, coalesce(a_stream[append.place], append.place) AS stream,
                         o_x[append.place] + coalesce(given.step, 0) AS seq,
                         o_y[append.place] - coalesce(a_count[append.place], 1) + 1
                             + coalesce(given.step, 0) AS version,
                         substr(p_data, given.start, given.size) AS data,
                         substr(p_salts, 16 * given.place::integer - 15, 16) AS salt
                  FROM unnest(e_append, e_step, e_type, e_schema, e_time, e_actor, e_request,
                              e_run, e_cause, e_start, e_size, e_tail) WITH ORDINALITY
                           AS given(append, step, type, schema, time, actor, request,
                                    run, cause, start, size, tail, place)
                       CROSS JOIN LATERAL coalesce(given.append, given.place::integer)
                           AS append(place)
                  WHERE o_code[append.place] = 0
                  OFFSET 0) AS e;  -- each part is cut out once
        IF cardinality(p_requests) > 0 THEN
            INSERT INTO request (id, stream, state, epoch, worker, until, priority, queued, model,
                                 deadline, run, tenant)
                SELECT r.id, r.stream, r.state, r.epoch, r.worker, r.until,
                       coalesce(q_priority[e_queued[r.event]], 0), r.seq,
                       q_model[e_queued[r.event]], q_deadline[e_queued[r.event]], e_run[r.event],
                       coalesce(q_tenant[e_queued[r.event]], '')
                FROM unnest(p_requests, r_stream, r_state, r_epoch, r_worker, r_until, r_event,
                            r_seq, r_changed)
                    AS r(id, stream, state, epoch, worker, until, event, seq, changed)
                WHERE r.changed AND r.state IS NOT NULL
                ON CONFLICT (id) DO UPDATE SET state = excluded.state, epoch = excluded.epoch,
                    worker = excluded.worker, until = excluded.until;
        END IF;
        IF cardinality(p_commands) > 0 THEN
            INSERT INTO command (id, seq, version, time)
                SELECT c.id, c.seq, c.version, v_now
                FROM unnest(p_commands, c_seq, c_version, c_new) AS c(id, seq, version, new)
                WHERE c.new;
        END IF;
    END IF;

    v_answer := json_build_object(
        'x', o_x, 'y', o_y,
        'code', CASE WHEN v_refused THEN o_code END, 'text', CASE WHEN v_refused THEN o_text END,
        'streams', CASE WHEN v_unknown THEN p_stream_ids END,
        'types', CASE WHEN v_unknown THEN p_type_ids END)::text;
    IF v_seq > v_base THEN
        INSERT INTO batch (writer, number, result, time)
            VALUES (p_writer, p_number, v_answer, log_clock())
            ON CONFLICT (writer) DO UPDATE SET number = excluded.number, result = excluded.result,
                time = excluded.time;
    END IF;
    RETURN v_answer;
END $$;
