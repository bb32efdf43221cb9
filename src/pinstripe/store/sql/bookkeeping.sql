-- The bookkeeping of Pinstripe. One schema of synced tables is one sync: `schema` names it everywhere.
-- Which account is in which schema, and which catalog made its tables.
CREATE TABLE IF NOT EXISTS pinstripe.sync (
  schema      text PRIMARY KEY,
  account_id  text,
  livemode    boolean,
  api_version text NOT NULL,
  sdk_version text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now()
);

DO $$
BEGIN  -- The rule by which secrets were removed from older rows. See store/rewrite.py.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'secret_rule') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN secret_rule text;
  END IF;
END $$;

DO $$
BEGIN  -- `personal`: the policy on personal data that the rows follow (store/rewrite.py). `erasures`: how many
  -- there were; every writer compares it before it commits (store/erasures.py).
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'erasures') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN personal jsonb, ADD COLUMN erasures bigint NOT NULL DEFAULT 0;
  END IF;
END $$;

DO $$
BEGIN  -- When the next verification is due, or why there is none.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'verify_at') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN verify_at timestamptz, ADD COLUMN verify_note text;
  END IF;
END $$;

-- Platforms: many connected accounts in one schema, by the key of the account that they are connected to
-- (store/platforms/stored.py). Keys and webhook secrets are encrypted like those of `stored_sync`.
CREATE TABLE IF NOT EXISTS pinstripe.platform (
  id              text PRIMARY KEY,
  schema          text NOT NULL,
  partitions      int NOT NULL DEFAULT 0,
  api_key         bytea NOT NULL,
  key_hint        text NOT NULL,
  webhook_secrets bytea[] NOT NULL DEFAULT '{}',
  stripe_url      text NOT NULL,
  settings        jsonb NOT NULL DEFAULT '{}',
  account_id      text NOT NULL,
  livemode        boolean NOT NULL,
  paused          boolean NOT NULL DEFAULT false,
  created_at      timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT platform_schema_key UNIQUE (schema)
);

DO $$
BEGIN  -- The platform of the schema, or of the account, that a row is about; null for a sync. The accounts of a
  -- platform have rows here, named by their scope (store/session.py), since all bookkeeping refers to them.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'platform_id') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN platform_id text REFERENCES pinstripe.platform ON DELETE CASCADE;
  END IF;
END $$;
CREATE INDEX IF NOT EXISTS sync_alone_idx ON pinstripe.sync (schema) WHERE platform_id IS NULL;
CREATE INDEX IF NOT EXISTS sync_platform_idx ON pinstripe.sync (platform_id) WHERE platform_id IS NOT NULL;

-- The accounts of a platform, its own among them. An account that took its authorisation back is `revoked`: its
-- rows stay and nothing is requested for it. `next_look_at`: when its event list is due. `looks`, `events`: how
-- often it was requested, and how many events it brought. `newest_event`: what the list showed on top last;
-- `known_to`: until when it did so, on Stripe's clock. `owed_at`: when a poll is due whatever is on top.
--
-- What an account costs: one row here, in `sync`, `lease` and `bell`; one in `cursor` for each list (some 140),
-- in `copied`, `filled` and `freshness` for each table that has rows; and what it changes, as long as
-- `retention` keeps it. For 10,000 accounts that is 1.4 million small rows of cursors.
CREATE TABLE IF NOT EXISTS pinstripe.platform_account (
  platform_id   text NOT NULL REFERENCES pinstripe.platform ON DELETE CASCADE,
  account_id    text NOT NULL,
  livemode      boolean NOT NULL,
  state         text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'revoked')),
  since         timestamptz NOT NULL DEFAULT clock_timestamp(),
  revoked_at    timestamptz,
  looked_at     timestamptz,
  next_look_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  last_event_at timestamptz,
  woken_at      timestamptz,
  newest_event  text,
  known_to      timestamptz,
  owed_at       timestamptz,
  looks         bigint NOT NULL DEFAULT 0,
  events        bigint NOT NULL DEFAULT 0,
  -- Trouble: consecutive failures, the last error's code, its words and its remedy.
  failures      int NOT NULL DEFAULT 0,
  code          text,
  reason        text,
  remedy        text,
  PRIMARY KEY (platform_id, account_id)
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS platform_account_due_idx
  ON pinstripe.platform_account (platform_id, next_look_at) WHERE state = 'active';

-- Erasures of customers: the certificate of each that is done (`rows`: erased rows by table), and those that
-- fall due some time after Stripe deleted the customer.
CREATE TABLE IF NOT EXISTS pinstripe.erasure (
  schema      text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  customer_id text NOT NULL,
  reason      text NOT NULL,
  due_at      timestamptz NOT NULL,
  erased_at   timestamptz,
  rows        jsonb,
  PRIMARY KEY (schema, customer_id)
);

-- The objects of erased customers: no later snapshot writes personal data of theirs.
CREATE TABLE IF NOT EXISTS pinstripe.erased (
  schema  text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table" text NOT NULL,
  id      text NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS erased_place_idx
  ON pinstripe.erased (schema, "table", left(id, 500), hashtextextended(id, 0));

-- How far each stream has been read. `position` is replaced in the transaction that writes the rows which
-- it covers, so after a crash both agree.
CREATE TABLE IF NOT EXISTS pinstripe.cursor (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  stream     text NOT NULL,
  state      text NOT NULL CHECK (state IN ('running', 'done', 'refused', 'failed')),
  position   jsonb,
  reason     text,
  remedy     text,
  -- `code`: the reason, for programs. `permission`: the one that the key lacks. `next_try_at`: when a stream
  -- that was refused or failed is retried.
  code        text,
  permission  text,
  next_try_at timestamptz,
  rows       bigint NOT NULL DEFAULT 0,
  requests   bigint NOT NULL DEFAULT 0,
  seconds    double precision NOT NULL DEFAULT 0,
  as_of      timestamptz,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema, stream)
);

DO $$
BEGIN  -- Only if it is missing: ALTER TABLE waits for every reader.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.cursor'::regclass
                 AND attname = 'next_try_at') THEN
    ALTER TABLE pinstripe.cursor ADD COLUMN code text, ADD COLUMN permission text,
      ADD COLUMN next_try_at timestamptz;
  END IF;
END $$;

-- Objects that rows refer to, but that Stripe does not have or this key may not read.
CREATE TABLE IF NOT EXISTS pinstripe.missing (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"    text NOT NULL,
  id         text NOT NULL,
  reason     text NOT NULL,
  checked_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS missing_place_idx
  ON pinstripe.missing (schema, "table", left(id, 500), hashtextextended(id, 0));
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_constraint WHERE conname = 'missing_pkey'
             AND conrelid = 'pinstripe.missing'::regclass) THEN
    ALTER TABLE pinstripe.missing DROP CONSTRAINT missing_pkey;
  END IF;
END $$;

-- The lease: one process a schema may write. Each take-over raises `fence`, and every writing transaction
-- checks it, so an earlier holder cannot commit.
CREATE TABLE IF NOT EXISTS pinstripe.lease (
  schema     text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  holder     text NOT NULL,
  fence      bigint NOT NULL,
  expires_at timestamptz NOT NULL
);

-- Applied events, kept for as long as a look-back may read them again.
CREATE TABLE IF NOT EXISTS pinstripe.applied_event (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  id         text NOT NULL,
  created    timestamptz NOT NULL,
  request_id text,
  PRIMARY KEY (schema, id)
);
CREATE INDEX IF NOT EXISTS applied_event_created_idx ON pinstripe.applied_event (schema, created);
CREATE INDEX IF NOT EXISTS applied_event_request_idx ON pinstripe.applied_event (schema, request_id)
  WHERE request_id IS NOT NULL;

-- The refetch queue: objects of which an event was only a hint, lists that an event names as changed, and
-- previews. Written in the transaction of the event, deleted in the transaction of the response.
CREATE TABLE IF NOT EXISTS pinstripe.pending (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  kind       text NOT NULL,
  "table"    text NOT NULL,
  id         text NOT NULL,
  parent     text,
  since      timestamptz NOT NULL,
  request_id text,
  event_id   text,
  -- Of a refetch that failed: the number of tries, the last error, and the time of the next try.
  attempts   int NOT NULL DEFAULT 0,
  code        text,
  reason      text,
  remedy      text,
  next_try_at timestamptz,
  asked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- Since when it is open. Queueing it again moves `asked_at`; a response that was requested before then
  -- completes the older one only, and moves this column to when it was requested.
  open_since timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- The class of work: the priority of its requests (`WorkClass`), 4 (related) where it is not known.
  priority   smallint NOT NULL DEFAULT 4
);
DO $$
BEGIN  -- Only if it is missing: ALTER TABLE waits for every reader.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.pending'::regclass
                 AND attname = 'open_since') THEN
    ALTER TABLE pinstripe.pending ADD COLUMN open_since timestamptz NOT NULL DEFAULT clock_timestamp();
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.pending'::regclass
                 AND attname = 'priority') THEN
    ALTER TABLE pinstripe.pending ADD COLUMN priority smallint NOT NULL DEFAULT 4;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.pending'::regclass
                 AND attname = 'event_id') THEN
    ALTER TABLE pinstripe.pending ADD COLUMN event_id text;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.pending'::regclass
                 AND attname = 'next_try_at') THEN
    ALTER TABLE pinstripe.pending ADD COLUMN code text, ADD COLUMN reason text,
      ADD COLUMN remedy text, ADD COLUMN next_try_at timestamptz;
  END IF;
END $$;

-- Ids that users choose have up to 5,000 characters, a B-tree entry up to 2,700 bytes: so the index has the
-- beginning of the id and a hash of all of it.
CREATE UNIQUE INDEX IF NOT EXISTS pending_place_idx
  ON pinstripe.pending (schema, kind, "table", left(id, 500), hashtextextended(id, 0));
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_constraint WHERE conname = 'pending_pkey'
             AND conrelid = 'pinstripe.pending'::regclass) THEN
    ALTER TABLE pinstripe.pending DROP CONSTRAINT pending_pkey;
  END IF;
END $$;

-- Rows that Postgres refuses because of an index, constraint, trigger or policy of the user, and refused
-- tables, with the id ''. Each has a reason and a remedy, never a value, and is retried every 10 seconds.
CREATE TABLE IF NOT EXISTS pinstripe.quarantine (
  schema   text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"  text NOT NULL,
  id       text NOT NULL,
  sqlstate text NOT NULL,
  name     text,
  reason   text NOT NULL,
  remedy   text NOT NULL,
  tries    int NOT NULL DEFAULT 1,
  -- Of a table: too many rows were left out to queue a refetch for each, so its lists are read again.
  relist   boolean NOT NULL DEFAULT false,
  since    timestamptz NOT NULL DEFAULT clock_timestamp(),
  tried_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX IF NOT EXISTS quarantine_place_idx
  ON pinstripe.quarantine (schema, "table", left(id, 500), hashtextextended(id, 0));

-- Requests for an immediate sync (`rung`: the number of the latest) and the worker's acknowledgement
-- (`heard`: the number up to which they are done). The tables hold what Stripe's event list had at `as_of`.
-- See store/events.py.
CREATE TABLE IF NOT EXISTS pinstripe.bell (
  schema     text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  rung       bigint NOT NULL DEFAULT 0,
  lookback_s double precision NOT NULL DEFAULT 0,
  rung_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  heard      bigint NOT NULL DEFAULT 0,
  as_of      timestamptz,
  heard_at   timestamptz
);

-- Requests sent to Stripe, by day (UTC) and kind, for Stripe's read quota.
CREATE TABLE IF NOT EXISTS pinstripe.request_count (
  schema text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  day    date NOT NULL,
  kind   text NOT NULL,
  count  bigint NOT NULL,
  PRIMARY KEY (schema, day, kind)
);

-- Up to when each table is known to be true, and by what (`how`): newest page, due entries, full refresh.
CREATE TABLE IF NOT EXISTS pinstripe.freshness (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"    text NOT NULL,
  how        text NOT NULL,
  known_to   timestamptz NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema, "table", how)
);

-- Snapshots that showed rows as they are, so that nothing was written: which rows (`keys`: hashes), and when.
-- See store/confirmations.py.
CREATE TABLE IF NOT EXISTS pinstripe.confirmation (
  schema       text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"      text NOT NULL,
  as_of        timestamptz NOT NULL,
  as_of_latest timestamptz NOT NULL,
  keys         bigint[] NOT NULL,
  noted_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS confirmation_place_idx
  ON pinstripe.confirmation (schema, "table", as_of_latest);

-- When the list of a parent was last known whole: `child` is the table of what it lists. A row that it did
-- not have is not inserted from an older page. See store/confirmations.py.
CREATE TABLE IF NOT EXISTS pinstripe.member_set (
  schema       text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  child        text NOT NULL,
  parent_id    text NOT NULL,
  as_of        timestamptz NOT NULL,
  as_of_latest timestamptz NOT NULL,
  noted_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX IF NOT EXISTS member_set_place_idx
  ON pinstripe.member_set (schema, child, left(parent_id, 500), hashtextextended(parent_id, 0));

-- By day: how far `Date` and `created` of proxied writes were apart, and how often a snapshot that contradicted a
-- row was stale. See store/daily_counts.py.
CREATE TABLE IF NOT EXISTS pinstripe.clock (
  schema         text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  day            date NOT NULL,
  writes         bigint NOT NULL DEFAULT 0,
  ahead_s        double precision NOT NULL DEFAULT 0,
  behind_s       double precision NOT NULL DEFAULT 0,
  contradictions bigint NOT NULL DEFAULT 0,
  stale          bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (schema, day)
);

-- Tables whose initial load is done: every later write is in the change feed.
CREATE TABLE IF NOT EXISTS pinstripe.copied (
  schema  text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table" text NOT NULL,
  at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema, "table")
);

-- Changes of rows, when the change feed is on.
CREATE TABLE IF NOT EXISTS pinstripe.change (
  position   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  schema     text NOT NULL,
  "table"    text NOT NULL,
  id         text NOT NULL,
  kind       text NOT NULL CHECK (kind IN ('insert', 'update', 'delete')),
  changes    jsonb NOT NULL,
  event_id   text,
  request_id text,
  at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS change_at_idx ON pinstripe.change (at);
CREATE INDEX IF NOT EXISTS change_place_idx ON pinstripe.change (schema, "table", left(id, 500));
DROP INDEX IF EXISTS pinstripe.change_row_idx;
CREATE INDEX IF NOT EXISTS change_event_idx ON pinstripe.change (schema, event_id)
  WHERE event_id IS NOT NULL;

-- Verifications: when the rows were compared with Stripe, the result, and a digest of the rows.
CREATE TABLE IF NOT EXISTS pinstripe.certificate (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  schema      text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  started_at  timestamptz NOT NULL,
  finished_at timestamptz NOT NULL,
  tables      jsonb NOT NULL,
  differences bigint NOT NULL,
  repaired    bigint NOT NULL,
  digest      text NOT NULL
);

-- Requests that Stripe refused in part: a property that cannot be expanded, a list that needs a parent. They
-- are not sent again before `next_try_at`.
CREATE TABLE IF NOT EXISTS pinstripe.refusal (
  schema      text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  endpoint    text NOT NULL,
  what        text NOT NULL,
  reason      text NOT NULL,
  remedy      text NOT NULL DEFAULT '',
  since       timestamptz NOT NULL DEFAULT clock_timestamp(),
  checked_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
  next_try_at timestamptz NOT NULL,
  PRIMARY KEY (schema, endpoint, what)
);

-- Columns that a migration added and has not filled in all rows: those after the key `after` are to come.
-- `is_lacking`: some rows had no value for them, so the lists of the table are read again.
CREATE TABLE IF NOT EXISTS pinstripe.filling (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"    text NOT NULL,
  columns    text[] NOT NULL,
  after      text NOT NULL DEFAULT '',
  is_lacking boolean NOT NULL DEFAULT false,
  PRIMARY KEY (schema, "table")
);

-- Tables that had rows after the last backfill: one that is empty at the next start was emptied or dropped.
CREATE TABLE IF NOT EXISTS pinstripe.filled (
  schema  text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table" text NOT NULL,
  PRIMARY KEY (schema, "table")
);

-- Syncs that a service runs beside the one of its flags and environment. Keys and webhook secrets are
-- encrypted; the encryption key is not in the database.
CREATE TABLE IF NOT EXISTS pinstripe.stored_sync (
  id              text PRIMARY KEY,
  schema          text NOT NULL,
  api_key         bytea NOT NULL,
  key_hint        text NOT NULL,
  webhook_secrets bytea[] NOT NULL DEFAULT '{}',
  stripe_url      text NOT NULL,
  stripe_account  text,
  settings        jsonb NOT NULL DEFAULT '{}',
  account_id      text,
  livemode        boolean NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT stored_sync_schema_key UNIQUE (schema)
);

-- Paused syncs, by schema. The schema need not exist yet.
CREATE TABLE IF NOT EXISTS pinstripe.paused (
  schema text PRIMARY KEY,
  since  timestamptz NOT NULL DEFAULT now()
);

-- Heartbeats of the workers, every two seconds. UNLOGGED: a crash of the server may empty it.
CREATE UNLOGGED TABLE IF NOT EXISTS pinstripe.process (
  schema text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  state  jsonb NOT NULL,
  at     timestamptz NOT NULL
) WITH (fillfactor = 10);

-- What is due later for one account of a platform, by task: a first copy that failed, lists that are read again,
-- a refetch whose next try is due. `failures`: how often in a row it failed. See store/sweep.py.
CREATE TABLE IF NOT EXISTS pinstripe.platform_task (
  scope    text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  task     text NOT NULL,
  due_at   timestamptz NOT NULL,
  failures int NOT NULL DEFAULT 0,
  PRIMARY KEY (scope, task)
);
CREATE INDEX IF NOT EXISTS platform_task_due_idx ON pinstripe.platform_task (due_at);

-- Workers of platforms, which share the rates of requests. `seen`: the newest worker that its share makes room
-- for; a newcomer begins when all others have seen it. See store/workers.py.
CREATE TABLE IF NOT EXISTS pinstripe.platform_worker (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name         text NOT NULL,
  version      text NOT NULL,
  joined_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  seen         bigint NOT NULL DEFAULT 0,
  running      int NOT NULL DEFAULT 0
);

DO $$
DECLARE keyless regclass;
BEGIN  -- A publication FOR ALL TABLES (Debezium's, say) lets no row be changed in a table without a primary key
  -- or another replica identity.
  FOR keyless IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'pinstripe'::regnamespace
      AND c.relkind = 'r' AND c.relreplident = 'd'
      AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
  LOOP
    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', keyless);
  END LOOP;
END $$;
