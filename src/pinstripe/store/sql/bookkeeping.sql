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

-- How far each stream has been read. `position` is an immutable value that describes what is durably
-- written; it is replaced in the transaction that writes the rows it vouches for.
CREATE TABLE IF NOT EXISTS pinstripe.cursor (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  stream     text NOT NULL,
  state      text NOT NULL CHECK (state IN ('running', 'done', 'refused', 'failed')),
  position   jsonb,
  reason     text,
  remedy     text,
  rows       bigint NOT NULL DEFAULT 0,
  requests   bigint NOT NULL DEFAULT 0,
  seconds    double precision NOT NULL DEFAULT 0,
  as_of      timestamptz,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema, stream)
);

-- Objects that rows refer to and Stripe does not have, or does not show to this key.
CREATE TABLE IF NOT EXISTS pinstripe.missing (
  schema     text NOT NULL REFERENCES pinstripe.sync ON DELETE CASCADE,
  "table"    text NOT NULL,
  id         text NOT NULL,
  reason     text NOT NULL,
  checked_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (schema, "table", id)
);

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
  attempts   int NOT NULL DEFAULT 0,
  asked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (schema, kind, "table", id)
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
CREATE INDEX IF NOT EXISTS change_row_idx ON pinstripe.change (schema, "table", id);

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
