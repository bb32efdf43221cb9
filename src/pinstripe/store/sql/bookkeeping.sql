-- The bookkeeping of Pinstripe. One schema of synced tables is one sync: `schema` names it everywhere.
CREATE SCHEMA IF NOT EXISTS pinstripe;

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
