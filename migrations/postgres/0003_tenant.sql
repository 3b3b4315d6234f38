-- Whom requests are for: tenants share the workers evenly.
ALTER TABLE request ADD COLUMN tenant text NOT NULL DEFAULT '';

CREATE INDEX request_waiting ON request (tenant, priority DESC, queued) WHERE state = 'queued';

CREATE INDEX request_held ON request (worker) WHERE worker IS NOT NULL;

-- append_batch writes it. The function is long and changes in three places, so it is edited: as the
-- database has it, with one more list of what is queued.
DO $$
DECLARE
    old regprocedure := (SELECT oid FROM pg_proc WHERE proname = 'append_batch'
                         AND pronamespace = current_schema()::regnamespace);
    body text := pg_get_functiondef(old);
    edits text[] := ARRAY[
        'q_deadline bigint[])', 'q_deadline bigint[], q_tenant text[])',
        'deadline, run)', 'deadline, run, tenant)',
        'e_run[r.event]', E'e_run[r.event],\n coalesce(q_tenant[e_queued[r.event]], '''')'
    ];
BEGIN
    FOR i IN 1 .. cardinality(edits) BY 2 LOOP
        IF (length(body) - length(replace(body, edits[i], ''))) <> length(edits[i]) THEN
            RAISE EXCEPTION 'append_batch has not exactly one %', edits[i];
        END IF;
        body := replace(body, edits[i], edits[i + 1]);
    END LOOP;
    EXECUTE 'DROP FUNCTION ' || old;
    EXECUTE body;
END $$;
