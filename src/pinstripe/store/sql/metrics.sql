-- The views of the schema `metrics`. `store.metrics` reads this file: it makes each block a function that
-- returns a table, and a view of the same name over it, with these words as comments.
--
--     --@ name: what a row is
--     --  column type: what it holds
--     SELECT ...
--
-- A function's text is a string to Postgres, so nothing of the synced tables depends on a view, and none of
-- them has to be synced for the others to work. {stripe} and {metrics} stand for the two schemas. A name that
-- begins with an underscore is a step of other views. Amounts are whole, in the smallest unit of their
-- currency, and never added up across currencies. What each number means is in docs/concepts/metrics.md.

--@ _month: The months that history is computed for, up to the present one.
--  month date: First day of the month
--  at timestamptz: The moment at which the month is looked at: its end, or now
--  is_open boolean: Whether the month is still running
SELECT m::date, least(m + interval '1 month', local.now) AT TIME ZONE zone.name, m = local.month
FROM {metrics}.settings AS setting
CROSS JOIN LATERAL (SELECT setting.time_zone) AS zone (name)
CROSS JOIN LATERAL (
    SELECT pg_catalog.now() AT TIME ZONE zone.name,
           pg_catalog.date_trunc('month', pg_catalog.now() AT TIME ZONE zone.name)
) AS local (now, month)
CROSS JOIN LATERAL pg_catalog.generate_series(
    pg_catalog.date_trunc('month', coalesce(
        (SELECT pg_catalog.min(s.start_date) FROM {stripe}.subscription AS s
         WHERE s.start_date >= local.month - interval '20 years'),
        pg_catalog.now()) AT TIME ZONE zone.name),
    local.month, interval '1 month') AS m

--@ _price: What one unit of each recurring price is worth, and for how long.
--  price_id text: References price.id
--  months numeric: Length of its billing period in months
--  unit numeric: Amount of one unit; null for tiered prices
--  is_metered boolean: Whether usage decides the amount
SELECT p.id,
       p.recurring_interval_count * CASE p.recurring_interval
           WHEN 'year' THEN 12
           WHEN 'month' THEN 1
           WHEN 'week' THEN 7 * 12 / setting.days_per_year
           WHEN 'day' THEN 12 / setting.days_per_year
       END,
       CASE WHEN p.billing_scheme IS DISTINCT FROM 'tiered'
            THEN coalesce(p.unit_amount_decimal, p.unit_amount) END,
       p.recurring_usage_type IS NOT DISTINCT FROM 'metered'
FROM {stripe}.price AS p CROSS JOIN {metrics}.settings AS setting
WHERE p.recurring_interval IS NOT NULL AND p.recurring_interval_count > 0

--@ _coupon: What each discount takes off, as far as the settings count it. A fixed amount has a row for each currency.
--  discount_id text: References discount.id
--  factor numeric: What a percentage leaves: 0.75 for 25 % off
--  amount_off numeric: A fixed amount off each invoice
--  currency text: Currency of the fixed amount
--  products text[]: The products that it is limited to; null for all
--  ends timestamptz: When it runs out
SELECT d.id, CASE WHEN c.percent_off IS NULL THEN 1 ELSE 1 - c.percent_off / 100 END,
       coalesce(off.amount, 0), off.currency, nullif(c.applies_to_products, '{}'), d."end"
FROM {stripe}.discount AS d
JOIN {stripe}.coupon AS c ON c.id = d.source_coupon_id
CROSS JOIN {metrics}.settings AS setting
CROSS JOIN LATERAL (
    SELECT c.amount_off, c.currency
  UNION ALL
    SELECT (option.value ->> 'amount_off')::bigint, option.key
    FROM pg_catalog.jsonb_each(c.currency_options) AS option
    WHERE c.amount_off IS NOT NULL AND option.key <> c.currency
) AS off (amount, currency)
WHERE c.duration = ANY (CASE setting.discounts
    WHEN 'forever' THEN ARRAY['forever']
    WHEN 'recurring' THEN ARRAY['forever', 'repeating']
    WHEN 'all' THEN ARRAY['forever', 'repeating', 'once']
    ELSE ARRAY[]::text[]
END)

--@ _line: What invoices, and items that wait for one, say about each subscription: so much a month from then to then.
--  line_id text: The invoice line or invoice item
--  subscription_id text: References subscription.id
--  customer_id text: References customer.id
--  currency text: Three letters, lower case
--  product_id text: References product.id
--  starts timestamptz: From when it holds
--  ends timestamptz: Until when it holds
--  is_proration boolean: Whether it corrects a line of the same period
--  months numeric: Length of the billing period
--  monthly numeric: Amount a month before discounts; negative where it takes back
--  discounts text[]: Ids of the discounts on the line
WITH raw AS (
    SELECT l.id, l.amount, l.currency, l.period_start, l.period_end, l.quantity, l.discount_amounts,
           coalesce(l.discounts, '{}') AS discounts, l.taxes, l.pricing_unit_amount_decimal AS unit,
           l.pricing_price_details ->> 'price' AS price_id,
           l.pricing_price_details ->> 'product' AS product_id,
           coalesce(l.subscription_id, details.subscription) AS subscription_id,
           details.proration, details.credits, l.parent_type = 'subscription_item_details' AS is_item
    FROM {stripe}.line_item AS l
    JOIN {stripe}.invoice AS i ON i.id = l.invoice_id
    CROSS JOIN {metrics}.settings AS setting
    CROSS JOIN LATERAL (
        SELECT parent ->> 'subscription', coalesce((parent ->> 'proration')::boolean, false),
               pg_catalog.jsonb_typeof(parent #> '{proration_details,credited_items}') = 'object'
        FROM (SELECT coalesce(l.parent_subscription_item_details, l.parent_invoice_item_details))
            AS one (parent)
    ) AS details (subscription, proration, credits)
    WHERE i.deleted IS NOT TRUE AND (i.status = 'paid'
       -- A subscription whose first invoice was never paid has never been active.
       OR i.status = 'open' AND setting.past_due AND (
           i.billing_reason IS DISTINCT FROM 'subscription_create'
           OR i.collection_method = 'send_invoice')
       OR i.status = 'uncollectible' AND setting.unpaid
       OR i.status IN ('draft', 'void') AND setting.paused
       OR details.proration)
  UNION ALL
    SELECT w.id, w.amount, w.currency, w.period_start, w.period_end, w.quantity, NULL,
           coalesce(w.discounts, '{}'), NULL, w.pricing_unit_amount_decimal,
           w.pricing_price_details ->> 'price', w.pricing_price_details ->> 'product',
           w.parent_subscription_details ->> 'subscription', true,
           pg_catalog.jsonb_typeof(w.proration_details_credited_items) = 'object', false
    FROM {stripe}.invoice_item AS w
    WHERE w.invoice_id IS NULL AND w.proration AND w.deleted IS NOT TRUE
)
SELECT r.id, s.id, s.customer_id, r.currency, r.product_id, r.period_start,
       least(r.period_end, s.ended_at), r.proration, p.months,
       CASE
           WHEN p.is_metered THEN 0
           WHEN r.amount = 0 AND NOT r.proration
               AND NOT (setting.trialing AND r.period_start < s.trial_end) THEN 0
           WHEN p.unit IS NULL AND NOT setting.tiers THEN 0
           ELSE {metrics}._sign(r.amount, r.proration, r.credits) * coalesce(
               -- What a line says of its unit is, in a proration, its own share: negative in a credit.
               CASE WHEN p.unit IS NOT NULL THEN coalesce(listed.unit, pg_catalog.abs(r.unit)) * {metrics}._quantity(
                   r.quantity, price.transform_quantity_divide_by, price.transform_quantity_round, setting.quantities) END,
               CASE WHEN NOT r.proration THEN r.amount END,
               {metrics}._tiered(listed.tiers, price.tiers_mode, r.quantity)
           ) / p.months * CASE
                   WHEN setting.without_inclusive_tax AND r.taxes @> '[{"tax_behavior": "inclusive"}]' THEN {metrics}._without_tax(r.amount, r.discount_amounts, r.taxes) ELSE 1 END
       END,
       CASE WHEN r.discount_amounts IS NULL OR r.discount_amounts = '[]' THEN r.discounts
            ELSE r.discounts || ARRAY(
                SELECT each ->> 'discount' FROM pg_catalog.jsonb_array_elements(r.discount_amounts) AS each
                WHERE NOT (each ->> 'discount' = ANY (r.discounts))) END
FROM raw AS r
JOIN {stripe}.subscription AS s ON s.id = r.subscription_id
JOIN {metrics}._price AS p ON p.price_id = r.price_id
JOIN {stripe}.price AS price ON price.id = r.price_id
CROSS JOIN {metrics}.settings AS setting
CROSS JOIN LATERAL (
    SELECT CASE WHEN price.currency = r.currency THEN p.unit
                ELSE (price.currency_options -> r.currency ->> 'unit_amount_decimal')::numeric END,
           CASE WHEN price.currency = r.currency THEN price.tiers
                ELSE price.currency_options -> r.currency -> 'tiers' END
) AS listed (unit, tiers)
WHERE (r.is_item OR r.proration) AND r.period_start < coalesce(s.ended_at, r.period_end)

--@ _item: What each item of each subscription is worth a month now.
--  subscription_id text: References subscription.id
--  customer_id text: References customer.id
--  currency text: Three letters, lower case
--  product_id text: References product.id
--  months numeric: Length of the billing period
--  monthly numeric: Amount a month before discounts
--  discounts text[]: Ids of the discounts on the item, its subscription or its customer
SELECT s.id, s.customer_id, s.currency, price.product_id, p.months,
       CASE
           WHEN p.is_metered OR p.unit IS NULL AND NOT setting.tiers THEN 0
           ELSE coalesce(
               CASE WHEN p.unit IS NOT NULL THEN
                   {metrics}._quantity(coalesce(i.quantity, 1), price.transform_quantity_divide_by,
                       price.transform_quantity_round, setting.quantities)
                   * CASE WHEN price.currency = s.currency THEN p.unit
                     ELSE (price.currency_options -> s.currency ->> 'unit_amount_decimal')::numeric END
               END,
               {metrics}._tiered(CASE WHEN price.currency = s.currency THEN price.tiers
                   ELSE price.currency_options -> s.currency -> 'tiers' END, price.tiers_mode, i.quantity),
               last.amount, earlier.amount, 0)
               / p.months * CASE WHEN setting.without_inclusive_tax
                   THEN coalesce(last.factor, earlier.factor, 1) ELSE 1 END
       END,
       coalesce(i.discounts, '{}') || CASE
           WHEN pg_catalog.cardinality(s.discounts) > 0 THEN s.discounts
           WHEN c.discount_id IS NOT NULL THEN ARRAY[c.discount_id]
           ELSE '{}' END
FROM {stripe}.subscription AS s
JOIN {stripe}.subscription_item AS i ON i.subscription_id = s.id AND i.deleted IS NOT TRUE
JOIN {stripe}.price AS price ON price.id = i.price_id
JOIN {metrics}._price AS p ON p.price_id = i.price_id
LEFT JOIN {stripe}.customer AS c ON c.id = s.customer_id
CROSS JOIN {metrics}.settings AS setting
CROSS JOIN LATERAL (
    -- Whether lines are asked: for the tax in the price, and in another currency for tiers, which Stripe leaves out.
    SELECT setting.without_inclusive_tax AND price.tax_behavior IS DISTINCT FROM 'exclusive'
        OR price.currency <> s.currency
) AS asked (so)
LEFT JOIN LATERAL (
    SELECT pg_catalog.avg({metrics}._without_tax(l.amount, l.discount_amounts, l.taxes)),
           pg_catalog.max(l.amount) FILTER (WHERE l.proration IS NOT TRUE)
    FROM {stripe}.line_item AS l
    WHERE asked.so AND l.invoice_id = s.latest_invoice_id AND l.pricing_price_details ->> 'price' = i.price_id
) AS last (factor, amount) ON true
LEFT JOIN LATERAL (
    -- The latest invoice may be for another item alone, one that was added.
    SELECT {metrics}._without_tax(l.amount, l.discount_amounts, l.taxes), l.amount
    FROM {stripe}.invoice AS v
    JOIN {stripe}.line_item AS l ON l.invoice_id = v.id
    WHERE asked.so AND last.factor IS NULL AND v.subscription_id = s.id
      AND l.pricing_price_details ->> 'price' = i.price_id AND l.proration IS NOT TRUE
    ORDER BY l.period_end DESC LIMIT 1
) AS earlier (factor, amount) ON true
WHERE (s.status = 'active' OR s.status = 'past_due' AND setting.past_due
       OR s.status = 'unpaid' AND setting.unpaid OR s.status = 'trialing' AND setting.trialing
       OR s.status = 'paused' AND setting.paused)
  -- What was billed ahead counts to its end, however collection goes on.
  AND (s.pause_collection_behavior IS NULL OR setting.paused OR EXISTS (
      SELECT FROM {stripe}.invoice AS last
      WHERE last.id = s.latest_invoice_id AND last.status IN ('paid', 'open')))

--@ subscription_mrr: Each subscription that counts now, with its monthly recurring revenue.
--  subscription_id text: References subscription.id
--  customer_id text: References customer.id
--  currency text: Three letters, lower case
--  mrr bigint: Monthly recurring revenue after discounts
--  before_discounts bigint: The same before discounts
WITH item AS MATERIALIZED (
    SELECT pg_catalog.row_number() OVER () AS place, i.* FROM {metrics}._item AS i
), off AS (
    SELECT i.place, {metrics}._product(d.factor) AS factor
    FROM item AS i
    CROSS JOIN LATERAL pg_catalog.unnest(i.discounts) AS one (id)
    JOIN {metrics}._coupon AS d ON d.discount_id = one.id
    WHERE pg_catalog.cardinality(i.discounts) > 0
      AND (d.ends IS NULL OR d.ends > pg_catalog.now())
      AND (d.products IS NULL OR i.product_id = ANY (d.products))
    GROUP BY 1
), worth AS (
    SELECT i.subscription_id, i.customer_id, i.currency, i.product_id, i.months, i.monthly,
           i.monthly * coalesce(off.factor, 1) AS net, i.discounts
    FROM item AS i LEFT JOIN off ON off.place = i.place
), fixed AS (
    SELECT each.subscription_id, pg_catalog.sum(least(each.amount_off / each.months, each.net)) AS monthly
    FROM (SELECT w.subscription_id, d.discount_id, d.amount_off, pg_catalog.min(w.months) AS months,
                 pg_catalog.sum(w.net) AS net
          FROM worth AS w
          CROSS JOIN LATERAL pg_catalog.unnest(w.discounts) AS one (id)
          JOIN {metrics}._coupon AS d
            ON d.discount_id = one.id AND d.currency = w.currency AND d.amount_off > 0
          WHERE (d.ends IS NULL OR d.ends > pg_catalog.now())
            AND (d.products IS NULL OR w.product_id = ANY (d.products))
          GROUP BY 1, 2, 3) AS each
    GROUP BY 1
)
SELECT w.subscription_id, w.customer_id, w.currency,
       greatest(pg_catalog.round(pg_catalog.sum(w.net) - coalesce(f.monthly, 0)), 0)::bigint,
       pg_catalog.round(pg_catalog.sum(w.monthly))::bigint
FROM worth AS w LEFT JOIN fixed AS f ON f.subscription_id = w.subscription_id
GROUP BY 1, 2, 3, f.monthly

--@ subscription_month: What each subscription was worth at the end of each month, and is worth now in the present one.
--  month date: First day of the month
--  subscription_id text: References subscription.id
--  customer_id text: References customer.id
--  currency text: Three letters, lower case
--  mrr bigint: Monthly recurring revenue after discounts; rows of 0 are left out
WITH line AS MATERIALIZED (
    SELECT * FROM {metrics}._line
), base AS (
    SELECT DISTINCT ON (l.line_id) l.line_id, b.discounts
    FROM line AS l
    JOIN line AS b ON b.subscription_id = l.subscription_id AND NOT b.is_proration
        AND b.starts <= l.starts AND b.ends >= l.ends
    WHERE l.is_proration
    ORDER BY l.line_id, b.starts DESC
), own AS MATERIALIZED (
    -- A correction has no discounts of its own on it: those of the line that it corrects count. It counts
    -- if that line counts, whatever became of the invoice that it stands on itself.
    SELECT l.line_id, l.subscription_id, l.customer_id, l.currency, l.product_id, l.starts, l.ends,
           l.months, l.monthly,
           CASE WHEN l.is_proration AND pg_catalog.cardinality(l.discounts) = 0
                THEN base.discounts ELSE l.discounts END AS discounts
    FROM line AS l LEFT JOIN base ON base.line_id = l.line_id
    WHERE NOT l.is_proration OR base.line_id IS NOT NULL
), off AS (
    SELECT o.line_id, {metrics}._product(d.factor) AS factor
    FROM own AS o
    CROSS JOIN LATERAL pg_catalog.unnest(o.discounts) AS one (id)
    JOIN {metrics}._coupon AS d ON d.discount_id = one.id
    WHERE pg_catalog.cardinality(o.discounts) > 0
      AND (d.products IS NULL OR o.product_id = ANY (d.products))
    GROUP BY 1
), net AS MATERIALIZED (
    -- A line holds at the ends of the months from the one in which it starts to the one before it ends.
    SELECT o.subscription_id, o.customer_id, o.currency, o.product_id, o.months, o.discounts,
           o.monthly * coalesce(off.factor, 1) AS monthly,
           (12 * pg_catalog.date_part('year', span.first) + pg_catalog.date_part('month', span.first))::integer - 1
               AS first,
           (12 * pg_catalog.date_part('year', span.last) + pg_catalog.date_part('month', span.last))::integer - 2
               AS last
    FROM own AS o
    LEFT JOIN off ON off.line_id = o.line_id
    CROSS JOIN {metrics}.settings AS setting
    CROSS JOIN LATERAL (
        SELECT o.starts AT TIME ZONE setting.time_zone,
               least(o.ends, present.at) AT TIME ZONE setting.time_zone
        FROM (SELECT pg_catalog.now()) AS present (at)
    ) AS span (first, last)
), past AS (
    SELECT m.month, n.subscription_id, n.customer_id, n.currency, pg_catalog.sum(n.monthly) AS monthly
    FROM net AS n CROSS JOIN LATERAL pg_catalog.generate_series(n.first, n.last) AS m (month)
    GROUP BY 1, 2, 3, 4
), fixed AS (
    SELECT each.month, each.subscription_id,
           pg_catalog.sum(least(each.amount_off / each.months, greatest(each.net, 0))) AS monthly
    FROM (SELECT m.month, n.subscription_id, d.discount_id, d.amount_off, pg_catalog.min(n.months) AS months,
                 pg_catalog.sum(n.monthly) AS net
          FROM net AS n
          CROSS JOIN LATERAL pg_catalog.unnest(n.discounts) AS one (id)
          JOIN {metrics}._coupon AS d
            ON d.discount_id = one.id AND d.currency = n.currency AND d.amount_off > 0
           AND (d.products IS NULL OR n.product_id = ANY (d.products))
          CROSS JOIN LATERAL pg_catalog.generate_series(n.first, n.last) AS m (month)
          GROUP BY 1, 2, 3, 4) AS each
    GROUP BY 1, 2
)
SELECT pg_catalog.make_date(p.month / 12, p.month % 12 + 1, 1), p.subscription_id, p.customer_id, p.currency,
       pg_catalog.round(p.monthly - coalesce(f.monthly, 0))::bigint
FROM past AS p
LEFT JOIN fixed AS f ON f.month = p.month AND f.subscription_id = p.subscription_id
WHERE pg_catalog.round(p.monthly - coalesce(f.monthly, 0)) > 0
UNION ALL
SELECT m.month, s.subscription_id, s.customer_id, s.currency, s.mrr
FROM {metrics}.subscription_mrr AS s JOIN {metrics}._month AS m ON m.is_open
WHERE s.mrr > 0

--@ mrr: Monthly recurring revenue now, in each currency.
--  currency text: Three letters, lower case
--  mrr bigint: Monthly recurring revenue
--  arr bigint: Twelve times as much
--  subscriptions bigint: Subscriptions that bring it
--  customers bigint: Customers who pay it
SELECT s.currency, pg_catalog.sum(s.mrr)::bigint, 12 * pg_catalog.sum(s.mrr)::bigint,
       pg_catalog.count(*), pg_catalog.count(DISTINCT s.customer_id)
FROM {metrics}.subscription_mrr AS s
WHERE s.mrr > 0
GROUP BY 1

--@ mrr_by_month: Monthly recurring revenue at the end of each month, and now in the present one.
--  month date: First day of the month
--  currency text: Three letters, lower case
--  mrr bigint: Monthly recurring revenue
--  subscriptions bigint: Subscriptions that bring it
--  customers bigint: Customers who pay it
SELECT s.month, s.currency, pg_catalog.sum(s.mrr)::bigint, pg_catalog.count(*),
       pg_catalog.count(DISTINCT s.customer_id)
FROM {metrics}.subscription_month AS s
GROUP BY 1, 2

--@ customer_movement: How the revenue of each customer changed from one month to the next.
--  month date: First day of the month in which it changed
--  customer_id text: References customer.id
--  currency text: Three letters, lower case
--  kind text: new, expansion, contraction, churn, reactivation or unchanged
--  mrr bigint: Monthly recurring revenue at the end of the month
--  change bigint: Difference to the month before
WITH paying AS MATERIALIZED (
    SELECT s.month, s.customer_id, s.currency, pg_catalog.sum(s.mrr)::bigint AS mrr
    FROM {metrics}.subscription_month AS s
    GROUP BY 1, 2, 3
), beside AS (
    SELECT p.*, pg_catalog.lag(p.month) OVER side AS last_month, pg_catalog.lag(p.mrr) OVER side AS last_mrr,
           pg_catalog.lead(p.month) OVER side AS next_month
    FROM paying AS p
    WINDOW side AS (PARTITION BY p.customer_id, p.currency ORDER BY p.month)
), following AS (
    SELECT b.*, b.last_month + interval '1 month' = b.month AS goes_on,
           (b.month + interval '1 month')::date AS month_after
    FROM beside AS b
)
SELECT f.month, f.customer_id, f.currency,
       CASE WHEN f.last_month IS NULL THEN 'new'
            WHEN NOT f.goes_on THEN 'reactivation'
            WHEN f.mrr > f.last_mrr THEN 'expansion'
            WHEN f.mrr < f.last_mrr THEN 'contraction'
            ELSE 'unchanged' END,
       f.mrr, f.mrr - CASE WHEN f.goes_on THEN f.last_mrr ELSE 0 END
FROM following AS f
UNION ALL
SELECT f.month_after, f.customer_id, f.currency, 'churn', 0, -f.mrr
FROM following AS f
WHERE f.next_month IS DISTINCT FROM f.month_after
  AND f.month_after <= (SELECT m.month FROM {metrics}._month AS m WHERE m.is_open)

--@ mrr_movement: How monthly recurring revenue came from one month to the next. starting + new + expansion + reactivation + contraction + churn = ending.
--  month date: First day of the month
--  currency text: Three letters, lower case
--  starting bigint: At the end of the month before
--  new bigint: Of customers who pay for the first time
--  expansion bigint: Of customers who pay more than before
--  reactivation bigint: Of customers who had stopped and pay again
--  contraction bigint: Of customers who pay less than before; negative
--  churn bigint: Of customers who stopped; negative
--  ending bigint: At the end of the month, or now in the present one
--  new_customers bigint: Customers who pay for the first time
--  reactivated_customers bigint: Customers who pay again
--  churned_customers bigint: Customers who stopped
--  starting_customers bigint: Customers at the end of the month before
SELECT c.month, c.currency, (pg_catalog.sum(c.mrr) - pg_catalog.sum(c.change))::bigint,
       coalesce(pg_catalog.sum(c.change) FILTER (WHERE c.kind = 'new'), 0)::bigint,
       coalesce(pg_catalog.sum(c.change) FILTER (WHERE c.kind = 'expansion'), 0)::bigint,
       coalesce(pg_catalog.sum(c.change) FILTER (WHERE c.kind = 'reactivation'), 0)::bigint,
       coalesce(pg_catalog.sum(c.change) FILTER (WHERE c.kind = 'contraction'), 0)::bigint,
       coalesce(pg_catalog.sum(c.change) FILTER (WHERE c.kind = 'churn'), 0)::bigint,
       pg_catalog.sum(c.mrr)::bigint,
       pg_catalog.count(*) FILTER (WHERE c.kind = 'new'),
       pg_catalog.count(*) FILTER (WHERE c.kind = 'reactivation'),
       pg_catalog.count(*) FILTER (WHERE c.kind = 'churn'),
       pg_catalog.count(*) FILTER (WHERE c.kind NOT IN ('new', 'reactivation'))
FROM {metrics}.customer_movement AS c
GROUP BY 1, 2

--@ churn: The share of customers and of revenue that each month lost.
--  month date: First day of the month
--  currency text: Three letters, lower case
--  customer_churn numeric: Customers who stopped, of those at the start of the month
--  gross_revenue_churn numeric: Revenue lost by churn and contraction, of that at the start
--  net_revenue_churn numeric: The same after expansion and reactivation; negative where they are more
SELECT m.month, m.currency,
       pg_catalog.round(m.churned_customers::numeric / nullif(m.starting_customers, 0), 6),
       pg_catalog.round(-(m.churn + m.contraction)::numeric / nullif(m.starting, 0), 6),
       pg_catalog.round(
           -(m.churn + m.contraction + m.expansion + m.reactivation)::numeric / nullif(m.starting, 0), 6)
FROM {metrics}.mrr_movement AS m

--@ lifetime_value: What a customer brings before leaving, if customers go on to leave as in the last months.
--  currency text: Three letters, lower case
--  customers bigint: Customers who pay now
--  mrr_per_customer bigint: Monthly recurring revenue of one on average
--  customer_churn numeric: Share of customers lost a month, over the finished months that the settings name
--  lifetime_value bigint: mrr_per_customer / customer_churn; null while nobody has left
WITH movement AS MATERIALIZED (
    SELECT m.*, here.is_open
    FROM {metrics}.mrr_movement AS m JOIN {metrics}._month AS here ON here.month = m.month
), lost AS (
    SELECT m.currency, pg_catalog.sum(m.churned_customers)::numeric
        / nullif(pg_catalog.sum(m.starting_customers), 0) AS share
    FROM movement AS m CROSS JOIN {metrics}.settings AS setting JOIN {metrics}._month AS present ON present.is_open
    WHERE NOT m.is_open AND m.month >= present.month - setting.lifetime_months * interval '1 month'
    GROUP BY 1
), present AS (
    SELECT m.currency, m.ending, m.starting_customers + m.new_customers + m.reactivated_customers
        - m.churned_customers AS customers
    FROM movement AS m WHERE m.is_open AND m.ending > 0
)
SELECT n.currency, n.customers, pg_catalog.round(n.ending::numeric / n.customers)::bigint,
       pg_catalog.round(l.share, 6),
       pg_catalog.round(n.ending::numeric / n.customers / nullif(l.share, 0))::bigint
FROM present AS n LEFT JOIN lost AS l ON l.currency = n.currency

--@ cohort: Of the customers who began to pay in the same month, how many still pay, and how much.
--  cohort date: First day of the month in which they began
--  currency text: Three letters, lower case
--  months_since bigint: Months since then
--  customers bigint: Those who pay in that month
--  mrr bigint: Their monthly recurring revenue
--  customers_kept numeric: Share of the cohort's customers
--  revenue_kept numeric: Share of the cohort's first revenue
WITH paying AS (
    SELECT c.month, c.customer_id, c.currency, c.mrr,
           pg_catalog.min(c.month) OVER (PARTITION BY c.customer_id, c.currency) AS cohort
    FROM {metrics}.customer_movement AS c
    WHERE c.mrr > 0
), counted AS (
    SELECT p.cohort, p.currency, p.month, pg_catalog.count(*) AS customers,
           pg_catalog.sum(p.mrr)::bigint AS mrr
    FROM paying AS p
    GROUP BY 1, 2, 3
)
SELECT c.cohort, c.currency,
       (12 * (pg_catalog.date_part('year', c.month) - pg_catalog.date_part('year', c.cohort))
        + pg_catalog.date_part('month', c.month) - pg_catalog.date_part('month', c.cohort))::bigint,
       c.customers, c.mrr,
       pg_catalog.round(c.customers::numeric / first.customers, 6),
       pg_catalog.round(c.mrr::numeric / first.mrr, 6)
FROM counted AS c
JOIN counted AS first
  ON first.cohort = c.cohort AND first.currency = c.currency AND first.month = c.cohort

--@ trial_conversion: Of the trials that began in each month, how many became paying subscriptions.
--  month date: First day of the month in which they began
--  currency text: Three letters, lower case
--  started bigint: Trials that began
--  running bigint: Those that still run
--  converted bigint: Those with a paid invoice of more than nothing after their end
--  not_converted bigint: Those that ended without one
--  conversion numeric: Converted, of those that ended
WITH trial AS (
    SELECT s.id, s.currency, s.trial_start, s.trial_end,
           s.status = 'trialing' AND s.trial_end > pg_catalog.now() AS is_running
    FROM {stripe}.subscription AS s
    WHERE s.trial_start IS NOT NULL
), paid AS (
    SELECT DISTINCT t.id
    FROM trial AS t
    JOIN {stripe}.invoice AS i ON i.subscription_id = t.id
    JOIN {stripe}.line_item AS l ON l.invoice_id = i.id
    WHERE i.status = 'paid' AND i.amount_paid > 0 AND l.amount > 0 AND l.period_end > t.trial_end
)
SELECT pg_catalog.date_trunc('month', t.trial_start AT TIME ZONE setting.time_zone)::date, t.currency,
       pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE t.is_running),
       pg_catalog.count(*) FILTER (WHERE p.id IS NOT NULL AND NOT t.is_running),
       pg_catalog.count(*) FILTER (WHERE p.id IS NULL AND NOT t.is_running),
       pg_catalog.round(pg_catalog.count(*) FILTER (WHERE p.id IS NOT NULL AND NOT t.is_running)::numeric
           / nullif(pg_catalog.count(*) FILTER (WHERE NOT t.is_running), 0), 6)
FROM trial AS t LEFT JOIN paid AS p ON p.id = t.id CROSS JOIN {metrics}.settings AS setting
GROUP BY 1, 2

--@ cash_against_billed: What was invoiced in each month, and what money came in and went back.
--  month date: First day of the month
--  currency text: Three letters, lower case
--  billed bigint: Totals of invoices finalized in the month, without voided ones
--  credited bigint: Credit notes issued in the month
--  unpaid bigint: What is still open of the invoices finalized in the month
--  collected bigint: Payments captured in the month, with or without an invoice
--  refunded bigint: Refunds made in the month
--  disputed bigint: Payments disputed in the month that were not won back
WITH setting AS (
    SELECT s.time_zone FROM {metrics}.settings AS s
), moved AS (
    SELECT i.status_transitions_finalized_at AS at, i.currency, i.total AS billed, 0::bigint AS credited,
           CASE WHEN i.status = 'open' THEN i.amount_remaining ELSE 0 END AS unpaid,
           0::bigint AS collected, 0::bigint AS refunded, 0::bigint AS disputed
    FROM {stripe}.invoice AS i
    WHERE i.status IN ('open', 'paid', 'uncollectible') AND i.status_transitions_finalized_at IS NOT NULL
  UNION ALL
    SELECT n.created, n.currency, 0, n.amount, 0, 0, 0, 0
    FROM {stripe}.credit_note AS n WHERE n.status = 'issued'
  UNION ALL
    -- A charge does not say when it was captured. Its balance transaction is made then.
    SELECT coalesce(b.created, c.created), c.currency, 0, 0, 0, c.amount_captured, 0, 0
    FROM {stripe}.charge AS c
    LEFT JOIN {stripe}.balance_transaction AS b ON b.id = c.balance_transaction_id
    WHERE c.status = 'succeeded' AND c.captured
  UNION ALL
    SELECT r.created, r.currency, 0, 0, 0, 0, r.amount, 0
    FROM {stripe}.refund AS r WHERE r.status = 'succeeded'
  UNION ALL
    SELECT d.created, d.currency, 0, 0, 0, 0, 0, d.amount
    FROM {stripe}.dispute AS d
    WHERE d.status IN ('needs_response', 'under_review', 'lost')
)
SELECT pg_catalog.date_trunc('month', m.at AT TIME ZONE setting.time_zone)::date, m.currency,
       pg_catalog.sum(m.billed)::bigint, pg_catalog.sum(m.credited)::bigint,
       pg_catalog.sum(m.unpaid)::bigint, pg_catalog.sum(m.collected)::bigint,
       pg_catalog.sum(m.refunded)::bigint, pg_catalog.sum(m.disputed)::bigint
FROM moved AS m CROSS JOIN setting
WHERE m.at IS NOT NULL
GROUP BY 1, 2

--@ payment_by_day: Payments of each day, those that worked and those that did not.
--  day date: The day, in the time zone of the settings
--  currency text: Three letters, lower case
--  payments bigint: Payments that succeeded
--  amount bigint: What they brought
--  failed bigint: Payments that failed
--  failed_amount bigint: What they would have brought
SELECT (c.created AT TIME ZONE setting.time_zone)::date, c.currency,
       pg_catalog.count(*) FILTER (WHERE c.status = 'succeeded'),
       coalesce(pg_catalog.sum(c.amount_captured) FILTER (WHERE c.status = 'succeeded'), 0)::bigint,
       pg_catalog.count(*) FILTER (WHERE c.status = 'failed'),
       coalesce(pg_catalog.sum(c.amount) FILTER (WHERE c.status = 'failed'), 0)::bigint
FROM {stripe}.charge AS c CROSS JOIN {metrics}.settings AS setting
WHERE c.created IS NOT NULL
GROUP BY 1, 2

--@ failed_payment: Payments that failed, with the reason.
--  charge_id text: References charge.id
--  created timestamptz: When it failed
--  customer_id text: References customer.id
--  amount bigint: What it would have brought
--  currency text: Three letters, lower case
--  failure_code text: Stripe's code of the reason
--  failure_message text: Stripe's words for it
SELECT c.id, c.created, c.customer_id, c.amount, c.currency, c.failure_code, c.failure_message
FROM {stripe}.charge AS c
WHERE c.status = 'failed'

--@ upcoming_invoice: What Stripe will invoice next: of each subscription, or of a customer where only that is known.
--  subscription_id text: References subscription.id
--  customer_id text: References customer.id
--  at timestamptz: When the invoice comes
--  amount_due bigint: What it will ask for
--  currency text: Three letters, lower case
WITH by_subscription AS (
    SELECT u.subscription_id, u.customer_id, coalesce(u.next_payment_attempt, u.period_end) AS at,
           u.amount_due, u.currency
    FROM {stripe}.upcoming_subscription_invoice AS u
)
SELECT * FROM by_subscription
UNION ALL
SELECT NULL, u.customer_id, coalesce(u.next_payment_attempt, u.period_end), u.amount_due, u.currency
FROM {stripe}.upcoming_customer_invoice AS u
WHERE NOT EXISTS (SELECT FROM by_subscription AS b WHERE b.customer_id = u.customer_id)

--@ payout_balance_transaction: Each balance transaction in the automatic payout that has paid it out.
--  payout_id text: References payout.id
--  balance_transaction_id text: References balance_transaction.id
--  is_own boolean: Whether it is the payout's own entry, which takes the sum from the balance
SELECT l.payout_id, l.balance_transaction_id,
       l.balance_transaction_id IS NOT DISTINCT FROM p.balance_transaction_id
FROM {stripe}.payout_balance_transaction AS l
LEFT JOIN {stripe}.payout AS p ON p.id = l.payout_id

--@ payout_statement: Each payout with the sum of its lines, and whether they agree to the cent.
--  payout_id text: References payout.id
--  created timestamptz: When it was made
--  arrival_date timestamptz: When it is to arrive
--  currency text: Three letters, lower case
--  status text: Stripe's status of the payout
--  amount bigint: What was paid out
--  lines bigint: Balance transactions in it, without its own
--  charges bigint: Charges and payments, before fees
--  refunds bigint: Refunds; negative
--  disputes bigint: Disputes lost and won; negative or positive
--  fees bigint: Fees on all lines; negative
--  other bigint: Everything else: transfers, adjustments, payouts that came back
--  lines_total bigint: Sum of the lines after fees
--  difference bigint: amount - lines_total; null where Stripe does not say what is in the payout
--  state text: ties out, failed, manual, waiting or differs
--  explanation text: Why, in words
WITH sum AS (
    SELECT l.payout_id, pg_catalog.count(*) AS lines, pg_catalog.sum(b.net)::bigint AS net,
           pg_catalog.sum(b.fee)::bigint AS fee, pg_catalog.count(b.id) AS found,
           pg_catalog.count(*) FILTER (WHERE b.currency <> p.currency) AS foreign_lines,
           coalesce(pg_catalog.sum(b.amount) FILTER (WHERE b.reporting_category = 'charge'), 0)::bigint AS charges,
           coalesce(pg_catalog.sum(b.amount) FILTER (
               WHERE b.reporting_category IN ('refund', 'partial_capture_reversal', 'refund_failure')), 0)::bigint
               AS refunds,
           coalesce(pg_catalog.sum(b.amount) FILTER (
               WHERE b.reporting_category IN ('dispute', 'dispute_reversal')), 0)::bigint AS disputes,
           pg_catalog.sum(b.amount)::bigint AS gross
    FROM {stripe}.payout_balance_transaction AS l
    JOIN {stripe}.payout AS p ON p.id = l.payout_id
    LEFT JOIN {stripe}.balance_transaction AS b ON b.id = l.balance_transaction_id
    WHERE l.balance_transaction_id IS DISTINCT FROM p.balance_transaction_id
    GROUP BY 1
), stated AS (
    SELECT p.id, s.*, CASE
        WHEN p.automatic IS NOT TRUE THEN 'manual'
        WHEN s.lines IS NULL OR p.reconciliation_status = 'in_progress' THEN 'waiting'
        WHEN s.found < s.lines OR s.foreign_lines > 0 OR s.net <> p.amount THEN 'differs'
        WHEN p.status IN ('failed', 'canceled') THEN 'failed'
        ELSE 'ties out' END AS state
    FROM {stripe}.payout AS p LEFT JOIN sum AS s ON s.payout_id = p.id
)
SELECT p.id, p.created, p.arrival_date, p.currency, p.status, p.amount, coalesce(s.lines, 0),
       coalesce(s.charges, 0), coalesce(s.refunds, 0), coalesce(s.disputes, 0), -coalesce(s.fee, 0),
       coalesce(s.gross - s.charges - s.refunds - s.disputes, 0), coalesce(s.net, 0),
       CASE WHEN s.state NOT IN ('manual', 'waiting') THEN p.amount - s.net END, s.state,
       CASE s.state
           WHEN 'manual' THEN 'Made by hand: Stripe does not record which transactions it holds.'
           WHEN 'waiting' THEN CASE
               WHEN p.reconciliation_status = 'in_progress' THEN 'Stripe is still putting it together.'
               ELSE 'Its list has not been read yet, or is empty.' END
           WHEN 'failed' THEN 'It ties out, but the bank sent it back: a payout_failure returns the money.'
           WHEN 'differs' THEN CASE
               WHEN s.found < s.lines THEN 'Some of its transactions have no row yet.'
               WHEN s.foreign_lines > 0 THEN 'Some of its transactions are in another currency.'
               ELSE 'Its transactions do not add up to it.' END
           ELSE 'Its transactions add up to it.' END
FROM {stripe}.payout AS p JOIN stated AS s ON s.id = p.id

--@ fee_by_kind: Fees of each month by what they are for. Negative: they are taken.
--  month date: First day of the month
--  currency text: Three letters, lower case
--  kind text: Stripe's type of fee (stripe_fee, application_fee, tax, ...), or unspecified
--  transactions bigint: Balance transactions that bore it
--  amount bigint: Sum of the fees
WITH fee AS (
    SELECT b.created, b.currency, part.kind, part.amount
    FROM {stripe}.balance_transaction AS b
    CROSS JOIN LATERAL (
        SELECT each ->> 'type', -(each ->> 'amount')::bigint
        FROM pg_catalog.jsonb_array_elements(b.fee_details) AS each
      UNION ALL
        SELECT 'unspecified', -(b.fee - coalesce((
            SELECT pg_catalog.sum((each ->> 'amount')::bigint)
            FROM pg_catalog.jsonb_array_elements(b.fee_details) AS each), 0))::bigint
    ) AS part (kind, amount)
    WHERE b.fee <> 0 AND part.amount <> 0
  UNION ALL
    -- What it bears itself, such as tax, is among the fees above.
    SELECT b.created, b.currency, b.type, b.amount
    FROM {stripe}.balance_transaction AS b
    WHERE b.reporting_category IN ('fee', 'network_cost')
       OR b.type IN ('stripe_fee', 'stripe_fx_fee', 'tax_fee', 'network_cost')
)
SELECT pg_catalog.date_trunc('month', f.created AT TIME ZONE setting.time_zone)::date, f.currency, f.kind,
       pg_catalog.count(*), pg_catalog.sum(f.amount)::bigint
FROM fee AS f CROSS JOIN {metrics}.settings AS setting
WHERE f.created IS NOT NULL
GROUP BY 1, 2, 3

--@ not_paid_out: Money that has not reached the bank, by the reason.
--  currency text: Three letters, lower case
--  reason text: pending, available, in transit or on hold
--  amount bigint: How much
--  transactions bigint: Balance transactions or payouts behind it
--  until timestamptz: When the next part of it moves on, if that is known
--  explanation text: What it waits for, in words
WITH moved AS (
    -- A payout leaves the available balance when it is made, whatever its own entry says of itself
    -- (https://docs.stripe.com/api/balance/balance_object).
    SELECT b.currency, b.net, b.available_on, CASE WHEN b.type = 'payout' THEN 'available' ELSE b.status END AS status,
           b.type IN ('payout_minimum_balance_hold', 'payout_minimum_balance_release', 'reserve_hold',
                      'reserve_release', 'reserve_transaction', 'reserved_funds') AS is_hold
    FROM {stripe}.balance_transaction AS b
    WHERE coalesce(b.balance_type, 'payments') = 'payments'
)
SELECT m.currency, 'pending', pg_catalog.sum(m.net)::bigint, pg_catalog.count(*),
       pg_catalog.min(m.available_on), 'Settles on the day that each transaction names.'
FROM moved AS m WHERE m.status = 'pending' GROUP BY 1
UNION ALL
SELECT m.currency, 'available', pg_catalog.sum(m.net)::bigint, pg_catalog.count(*), NULL,
       'In the balance; the next payout takes it.'
FROM moved AS m WHERE m.status = 'available' GROUP BY 1 HAVING pg_catalog.sum(m.net) <> 0
UNION ALL
SELECT m.currency, 'on hold', -pg_catalog.sum(m.net)::bigint, pg_catalog.count(*), NULL,
       'Held back by Stripe as a reserve or minimum balance.'
FROM moved AS m WHERE m.is_hold GROUP BY 1 HAVING pg_catalog.sum(m.net) <> 0
UNION ALL
SELECT p.currency, 'in transit', pg_catalog.sum(p.amount)::bigint, pg_catalog.count(*),
       pg_catalog.min(p.arrival_date), 'In a payout that has not arrived.'
FROM {stripe}.payout AS p WHERE p.status IN ('pending', 'in_transit') GROUP BY 1
