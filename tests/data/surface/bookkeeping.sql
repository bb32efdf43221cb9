CREATE TABLE IF NOT EXISTS pinstripe.sync (
  schema      text PRIMARY KEY,
  account_id  text,
  livemode    boolean,
  api_version text NOT NULL,
  sdk_version text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now()
);
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'secret_rule') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN secret_rule text;
  END IF;
END $$;
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'erasures') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN personal jsonb, ADD COLUMN erasures bigint NOT NULL DEFAULT 0;
  END IF;
END $$;
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'verify_at') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN verify_at timestamptz, ADD COLUMN verify_note text;
  END IF;
END $$;
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
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'platform_id') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN platform_id text REFERENCES pinstripe.platform ON DELETE CASCADE;
  END IF;
END $$;
CREATE INDEX IF NOT EXISTS sync_alone_idx ON pinstripe.sync (schema) WHERE platform_id IS NULL;
CREATE INDEX IF NOT EXISTS sync_platform_idx ON pinstripe.sync (platform_id) WHERE platform_id IS NOT NULL;
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
  failures      int NOT NULL DEFAULT 0,
  code          text,
  reason        text,
  remedy        text,
  PRIMARY KEY (platform_id, account_id)
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS platform_account_due_idx
  ON pinstripe.platform_account (platform_id, next_look_at) WHERE state = 'active';
CREATE TABLE IF NOT EXISTS pinstripe.erasure (
  schema      text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  customer_id text NOT NULL,
  reason      text NOT NULL,
  due_at      timestamptz NOT NULL,
  erased_at   timestamptz,
  rows        jsonb,
  PRIMARY KEY (schema, customer_id)
);
CREATE TABLE IF NOT EXISTS pinstripe.erased (
  schema  text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table" text NOT NULL,
  id      text NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS erased_place_idx
  ON pinstripe.erased (schema, "table", left(id, 500), hashtextextended(id, 0));
CREATE TABLE IF NOT EXISTS pinstripe.cursor (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  stream     text NOT NULL,
  state      text NOT NULL CHECK (state IN ('running', 'done', 'refused', 'failed')),
  position   jsonb,
  reason     text,
  remedy     text,
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
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.cursor'::regclass
                 AND attname = 'next_try_at') THEN
    ALTER TABLE pinstripe.cursor ADD COLUMN code text, ADD COLUMN permission text,
      ADD COLUMN next_try_at timestamptz;
  END IF;
END $$;
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
CREATE TABLE IF NOT EXISTS pinstripe.lease (
  schema     text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  holder     text NOT NULL,
  fence      bigint NOT NULL,
  expires_at timestamptz NOT NULL
);
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
CREATE TABLE IF NOT EXISTS pinstripe.pending (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  kind       text NOT NULL,
  "table"    text NOT NULL,
  id         text NOT NULL,
  parent     text,
  since      timestamptz NOT NULL,
  request_id text,
  event_id   text,
  attempts   int NOT NULL DEFAULT 0,
  code        text,
  reason      text,
  remedy      text,
  next_try_at timestamptz,
  asked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  open_since timestamptz NOT NULL DEFAULT clock_timestamp(),
  priority   smallint NOT NULL DEFAULT 4
);
DO $$
BEGIN
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
CREATE UNIQUE INDEX IF NOT EXISTS pending_place_idx
  ON pinstripe.pending (schema, kind, "table", left(id, 500), hashtextextended(id, 0));
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_constraint WHERE conname = 'pending_pkey'
             AND conrelid = 'pinstripe.pending'::regclass) THEN
    ALTER TABLE pinstripe.pending DROP CONSTRAINT pending_pkey;
  END IF;
END $$;
CREATE TABLE IF NOT EXISTS pinstripe.quarantine (
  schema   text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"  text NOT NULL,
  id       text NOT NULL,
  sqlstate text NOT NULL,
  name     text,
  reason   text NOT NULL,
  remedy   text NOT NULL,
  tries    int NOT NULL DEFAULT 1,
  relist   boolean NOT NULL DEFAULT false,
  since    timestamptz NOT NULL DEFAULT clock_timestamp(),
  tried_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX IF NOT EXISTS quarantine_place_idx
  ON pinstripe.quarantine (schema, "table", left(id, 500), hashtextextended(id, 0));
CREATE TABLE IF NOT EXISTS pinstripe.bell (
  schema     text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  rung       bigint NOT NULL DEFAULT 0,
  lookback_s double precision NOT NULL DEFAULT 0,
  rung_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  heard      bigint NOT NULL DEFAULT 0,
  as_of      timestamptz,
  heard_at   timestamptz
);
CREATE TABLE IF NOT EXISTS pinstripe.request_count (
  schema text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  day    date NOT NULL,
  kind   text NOT NULL,
  count  bigint NOT NULL,
  PRIMARY KEY (schema, day, kind)
);
CREATE TABLE IF NOT EXISTS pinstripe.freshness (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"    text NOT NULL,
  how        text NOT NULL,
  known_to   timestamptz NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema, "table", how)
);
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
CREATE TABLE IF NOT EXISTS pinstripe.copied (
  schema  text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table" text NOT NULL,
  at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema, "table")
);
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
CREATE TABLE IF NOT EXISTS pinstripe.filling (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"    text NOT NULL,
  columns    text[] NOT NULL,
  after      text NOT NULL DEFAULT '',
  is_lacking boolean NOT NULL DEFAULT false,
  PRIMARY KEY (schema, "table")
);
CREATE TABLE IF NOT EXISTS pinstripe.filled (
  schema  text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table" text NOT NULL,
  PRIMARY KEY (schema, "table")
);
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
CREATE TABLE IF NOT EXISTS pinstripe.paused (
  schema text PRIMARY KEY,
  since  timestamptz NOT NULL DEFAULT now()
);
CREATE UNLOGGED TABLE IF NOT EXISTS pinstripe.process (
  schema text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  state  jsonb NOT NULL,
  at     timestamptz NOT NULL
) WITH (fillfactor = 10);
CREATE TABLE IF NOT EXISTS pinstripe.platform_task (
  scope    text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  task     text NOT NULL,
  due_at   timestamptz NOT NULL,
  failures int NOT NULL DEFAULT 0,
  PRIMARY KEY (scope, task)
);
CREATE INDEX IF NOT EXISTS platform_task_due_idx ON pinstripe.platform_task (due_at);
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
BEGIN
  FOR keyless IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'pinstripe'::regnamespace
      AND c.relkind = 'r' AND c.relreplident = 'd'
      AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
  LOOP
    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', keyless);
  END LOOP;
END $$;
