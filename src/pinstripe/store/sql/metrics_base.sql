-- What the views of `metrics.sql` stand on: the user's settings, and small functions. Run anew with each
-- version; the settings keep their values.

CREATE TABLE IF NOT EXISTS {metrics}.settings (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    discounts text NOT NULL DEFAULT 'forever' CHECK (discounts IN ('none', 'forever', 'recurring', 'all')),
    without_inclusive_tax boolean NOT NULL DEFAULT true,
    quantities boolean NOT NULL DEFAULT true,
    tiers boolean NOT NULL DEFAULT true,
    days_per_year numeric NOT NULL DEFAULT 365 CHECK (days_per_year > 0),
    past_due boolean NOT NULL DEFAULT true,
    unpaid boolean NOT NULL DEFAULT false,
    trialing boolean NOT NULL DEFAULT false,
    paused boolean NOT NULL DEFAULT false,
    lifetime_months integer NOT NULL DEFAULT 12 CHECK (lifetime_months > 0),
    time_zone text NOT NULL DEFAULT 'UTC' CHECK (pg_catalog.now() AT TIME ZONE time_zone IS NOT NULL)
);
INSERT INTO {metrics}.settings DEFAULT VALUES ON CONFLICT DO NOTHING;

COMMENT ON TABLE {metrics}.settings IS 'How the metrics are defined: one row, yours to update';
COMMENT ON COLUMN {metrics}.settings.one IS 'Always true: there is one row';
COMMENT ON COLUMN {metrics}.settings.discounts IS
    'Coupons that lower recurring revenue: none, forever, recurring (forever and repeating) or all';
COMMENT ON COLUMN {metrics}.settings.without_inclusive_tax IS
    'Whether tax that is part of a price is taken off; tax on top never counts';
COMMENT ON COLUMN {metrics}.settings.quantities IS 'Whether prices are multiplied by their quantity';
COMMENT ON COLUMN {metrics}.settings.tiers IS 'Whether tiered prices count';
COMMENT ON COLUMN {metrics}.settings.days_per_year IS 'Turns days and weeks into months: 365, 365.25 or 360';
COMMENT ON COLUMN {metrics}.settings.past_due IS 'Whether subscriptions that are past due count';
COMMENT ON COLUMN {metrics}.settings.unpaid IS 'Whether unpaid subscriptions count';
COMMENT ON COLUMN {metrics}.settings.trialing IS 'Whether subscriptions count during their trial';
COMMENT ON COLUMN {metrics}.settings.paused IS 'Whether paused subscriptions count';
COMMENT ON COLUMN {metrics}.settings.lifetime_months IS 'Finished months whose churn the lifetime value uses';
COMMENT ON COLUMN {metrics}.settings.time_zone IS 'Where months and days begin';

CREATE OR REPLACE FUNCTION {metrics}._multiply(numeric, numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT $1 * $2';

CREATE OR REPLACE AGGREGATE {metrics}._product(numeric) (
    SFUNC = {metrics}._multiply, STYPE = numeric, INITCOND = '1', PARALLEL = SAFE
);

CREATE OR REPLACE FUNCTION {metrics}._sign(amount bigint, proration boolean, credits boolean) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
    'SELECT CASE WHEN $2 AND ($1 < 0 OR $3) THEN -1 ELSE 1 END';

CREATE OR REPLACE FUNCTION {metrics}._quantity(
    quantity bigint, divide_by bigint, round_to text, counts boolean) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN NOT $4 THEN pg_catalog.sign($1::numeric)
        WHEN $2 IS NULL THEN $1
        WHEN $3 = 'up' THEN pg_catalog.ceil($1::numeric / $2)
        ELSE pg_catalog.floor($1::numeric / $2)
    END
$$;

CREATE OR REPLACE FUNCTION {metrics}._without_tax(amount bigint, discounts jsonb, taxes jsonb) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN $3 IS NULL OR $3 = '[]' OR taxed.amount = 0 THEN 1
                ELSE 1 - (SELECT coalesce(pg_catalog.sum((tax ->> 'amount')::numeric), 0)
                          FROM pg_catalog.jsonb_array_elements($3) AS tax
                          WHERE tax ->> 'tax_behavior' = 'inclusive') / taxed.amount END
    FROM (SELECT $1 - (SELECT coalesce(pg_catalog.sum((off ->> 'amount')::numeric), 0)
                       FROM pg_catalog.jsonb_array_elements($2) AS off)) AS taxed (amount)
$$;

-- What a quantity costs by tiers: in `volume` mode all units at the price of the tier that the quantity
-- reaches, else each unit at its tier's (https://docs.stripe.com/products-prices/pricing-models).
CREATE OR REPLACE FUNCTION {metrics}._tiered(tiers jsonb, mode text, quantity bigint) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    WITH tier AS (
        SELECT (each ->> 'up_to')::numeric AS up_to,
               coalesce(pg_catalog.lag((each ->> 'up_to')::numeric) OVER (ORDER BY place), 0) AS above,
               coalesce((each ->> 'unit_amount_decimal')::numeric, 0) AS unit,
               coalesce((each ->> 'flat_amount_decimal')::numeric, 0) AS flat, place
        FROM pg_catalog.jsonb_array_elements($1) WITH ORDINALITY AS one (each, place)
    )
    SELECT CASE
        WHEN pg_catalog.jsonb_typeof($1) IS DISTINCT FROM 'array' THEN NULL
        WHEN $2 = 'volume' THEN (
            SELECT $3 * t.unit + t.flat FROM tier AS t
            WHERE t.up_to IS NULL OR $3 <= t.up_to ORDER BY t.place LIMIT 1)
        ELSE (
            SELECT coalesce(pg_catalog.sum((least($3, coalesce(t.up_to, $3)) - t.above) * t.unit + t.flat), 0)
            FROM tier AS t WHERE $3 > t.above)
    END
$$;
