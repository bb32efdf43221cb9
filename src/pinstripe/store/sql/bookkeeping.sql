-- The bookkeeping of Pinstripe. One schema of synced tables is one sync: `schema` names it everywhere.
-- Which account stands in which schema, and from which catalog its tables are.
CREATE TABLE IF NOT EXISTS pinstripe.sync (
  schema      text PRIMARY KEY,
  account_id  text,
  livemode    boolean,
  api_version text NOT NULL,
  sdk_version text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now()
);

DO $$
BEGIN  -- By which rule secrets have been taken out of what was written. See store/forget_secrets.py.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.sync'::regclass
                 AND attname = 'secret_rule') THEN
    ALTER TABLE pinstripe.sync ADD COLUMN secret_rule text;
  END IF;
END $$;

-- How far each stream has been read. `position` is an immutable value that describes what is durably
-- written; it is replaced in the transaction that writes the rows it vouches for.
CREATE TABLE IF NOT EXISTS pinstripe.cursor (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  stream     text NOT NULL,
  state      text NOT NULL CHECK (state IN ('running', 'done', 'refused', 'failed')),
  position   jsonb,
  reason     text,
  remedy     text,
  -- What became of it, for programs; the permission that is missing; when a stream that was refused or
  -- failed is tried again.
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
BEGIN  -- Only where it is missing: ALTER TABLE would wait for all who read.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.cursor'::regclass
                 AND attname = 'next_try_at') THEN
    ALTER TABLE pinstripe.cursor ADD COLUMN code text, ADD COLUMN permission text,
      ADD COLUMN next_try_at timestamptz;
  END IF;
END $$;

-- Objects that rows refer to and Stripe does not have, or does not show to this key.
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

-- Who may write: one process a schema. `fence` grows with every holder; a holder that lost the lease
-- finds another fence in its own transaction and writes nothing.
CREATE TABLE IF NOT EXISTS pinstripe.lease (
  schema     text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  holder     text NOT NULL,
  fence      bigint NOT NULL,
  expires_at timestamptz NOT NULL
);

-- Events that have been applied, for as long as the list may show them again.
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

-- What must still be asked of Stripe: objects of which an event was only a hint, lists that an event
-- says have changed, previews. Written with the event, deleted when it is done.
CREATE TABLE IF NOT EXISTS pinstripe.pending (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  kind       text NOT NULL,
  "table"    text NOT NULL,
  id         text NOT NULL,
  parent     text,
  since      timestamptz NOT NULL,
  request_id text,
  event_id   text,
  -- Of a request that met trouble: how often it was tried, what happened the last time, when it is
  -- tried next. It stays until it is answered.
  attempts   int NOT NULL DEFAULT 0,
  code        text,
  reason      text,
  remedy      text,
  next_try_at timestamptz,
  asked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- Since when an answer is owed: `asked_at` moves with every new question, this one with the answers.
  open_since timestamptz NOT NULL DEFAULT clock_timestamp()
);
DO $$
BEGIN  -- Only where it is missing: ALTER TABLE would wait for all who read.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pinstripe.pending'::regclass
                 AND attname = 'open_since') THEN
    ALTER TABLE pinstripe.pending ADD COLUMN open_since timestamptz NOT NULL DEFAULT clock_timestamp();
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

-- Ids that users choose may have 5,000 characters, an entry of a B-tree 2,700 bytes: so it holds the
-- beginning of an id and a number made of all of it.
CREATE UNIQUE INDEX IF NOT EXISTS pending_place_idx
  ON pinstripe.pending (schema, kind, "table", left(id, 500), hashtextextended(id, 0));
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_constraint WHERE conname = 'pending_pkey'
             AND conrelid = 'pinstripe.pending'::regclass) THEN
    ALTER TABLE pinstripe.pending DROP CONSTRAINT pending_pkey;
  END IF;
END $$;

-- Rows that Postgres refuses (an index, constraint, trigger or policy of the user's own), and tables, whose
-- id is '': named, with the remedy and never a value. They are tried again all the time.
CREATE TABLE IF NOT EXISTS pinstripe.quarantine (
  schema   text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"  text NOT NULL,
  id       text NOT NULL,
  sqlstate text NOT NULL,
  name     text,
  reason   text NOT NULL,
  remedy   text NOT NULL,
  tries    int NOT NULL DEFAULT 1,
  -- Of a table: rows were left out that are not owed one by one, so its lists are read anew.
  relist   boolean NOT NULL DEFAULT false,
  since    timestamptz NOT NULL DEFAULT clock_timestamp(),
  tried_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX IF NOT EXISTS quarantine_place_idx
  ON pinstripe.quarantine (schema, "table", left(id, 500), hashtextextended(id, 0));

-- Who wants the process that syncs to look at Stripe now (`rung`), and how far it has answered (`heard`):
-- what Stripe's event list showed at `as_of` is in the tables. See store/rings.py.
CREATE TABLE IF NOT EXISTS pinstripe.bell (
  schema     text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  rung       bigint NOT NULL DEFAULT 0,
  lookback_s double precision NOT NULL DEFAULT 0,
  rung_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  heard      bigint NOT NULL DEFAULT 0,
  as_of      timestamptz,
  heard_at   timestamptz
);

-- Requests sent to Stripe, by day (UTC) and kind: for the read allowance.
CREATE TABLE IF NOT EXISTS pinstripe.request_count (
  schema text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  day    date NOT NULL,
  kind   text NOT NULL,
  count  bigint NOT NULL,
  PRIMARY KEY (schema, day, kind)
);

-- How far each table is known to be true, and by what.
CREATE TABLE IF NOT EXISTS pinstripe.freshness (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"    text NOT NULL,
  how        text NOT NULL,
  known_to   timestamptz NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema, "table", how)
);

-- Tables whose first copy is complete: what is written to them from then on is a change.
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

-- Proofs that the copy equals Stripe.
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

-- What Stripe refuses beside whole objects: a property that cannot be expanded, a list that wants a parent.
-- It is not asked for until `next_try_at`, and then once more.
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

-- Tables that had rows when they were last seen: one that is empty now was emptied, or dropped, by hand.
CREATE TABLE IF NOT EXISTS pinstripe.filled (
  schema  text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table" text NOT NULL,
  PRIMARY KEY (schema, "table")
);

-- Syncs that a service runs beside the one that flags and environment describe. Key and webhook secrets
-- are encrypted; what encrypts them is not in the database.
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

-- Schemas that no service syncs for now. There may be none of that name yet.
CREATE TABLE IF NOT EXISTS pinstripe.paused (
  schema text PRIMARY KEY,
  since  timestamptz NOT NULL DEFAULT now()
);

-- What the process that syncs a schema tells of itself every other second. Nothing is lost with it.
CREATE UNLOGGED TABLE IF NOT EXISTS pinstripe.process (
  schema text PRIMARY KEY REFERENCES pinstripe.sync ON DELETE CASCADE,
  state  jsonb NOT NULL,
  at     timestamptz NOT NULL
) WITH (fillfactor = 10);
