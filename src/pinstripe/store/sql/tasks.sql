-- Requests a task of one account, in the transaction of the caller; returns whether it is a new one. A task
-- that waits already is enough. Its row is locked until the commit: a worker that took it meanwhile would not
-- see what the caller has written, and nobody would request the task again. See store/tasks.py.
CREATE OR REPLACE FUNCTION pinstripe_tasks.request_job(
  _queue text, _task text, _scope text, _priority int
) RETURNS boolean
LANGUAGE plpgsql SET search_path = pinstripe_tasks, pg_catalog, pg_temp AS $$
DECLARE
  _kind text := _task || ' ' || _scope;
  _job bigint;
BEGIN
  LOOP
    UPDATE procrastinate_jobs SET priority = greatest(priority, _priority)
      WHERE queueing_lock = _kind AND status = 'todo' RETURNING id INTO _job;
    IF FOUND THEN
      -- Workers pass a locked row over, and nothing but this wakes them after the commit.
      PERFORM pg_notify('procrastinate_queue_v1#' || _queue,
                        json_build_object('type', 'job_inserted', 'job_id', _job)::text);
      RETURN false;
    END IF;
    BEGIN
      PERFORM procrastinate_defer_jobs_v1(ARRAY[ROW(
        _queue, _task, _priority, _scope, _kind, jsonb_build_object('scope', _scope), NULL::timestamptz
      )]::procrastinate_job_to_defer_v1[]);
      RETURN true;
    EXCEPTION WHEN unique_violation THEN
      NULL;  -- Another transaction was faster. Its task is there now, or has begun.
    END;
  END LOOP;
END;
$$;

-- The end of a job wakes the workers if another one of its account waits: until now it could not begin.
CREATE OR REPLACE FUNCTION pinstripe_tasks.tell_next() RETURNS trigger
LANGUAGE plpgsql SET search_path = pinstripe_tasks, pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pg_notify('procrastinate_queue_v1#' || queue_name,
                    json_build_object('type', 'job_inserted', 'job_id', id)::text)
  FROM procrastinate_jobs WHERE lock = OLD.lock AND status = 'todo' LIMIT 1;
  RETURN NULL;
END;
$$;
DROP TRIGGER IF EXISTS pinstripe_tell_next ON pinstripe_tasks.procrastinate_jobs;
CREATE TRIGGER pinstripe_tell_next AFTER DELETE ON pinstripe_tasks.procrastinate_jobs
  FOR EACH ROW WHEN (OLD.status = 'doing' AND OLD.lock IS NOT NULL)
  EXECUTE FUNCTION pinstripe_tasks.tell_next();

-- A worker looks for the first job whose lock no earlier job has: by lock, else it reads all jobs for each.
CREATE INDEX IF NOT EXISTS pinstripe_jobs_lock_idx ON pinstripe_tasks.procrastinate_jobs
  (lock, priority, id) WHERE status IN ('todo', 'doing');
