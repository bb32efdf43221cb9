-- What the SQL page offers: a title and the tables that it reads, then the statement.

-- Paid charges by month: charge
SELECT date_trunc('month', created) AS month, currency,
       count(*) AS charges, sum(amount - amount_refunded) AS net_minor
FROM charge
WHERE status = 'succeeded'
GROUP BY 1, 2
ORDER BY 1 DESC, 2

-- Subscriptions by status: subscription
SELECT status, count(*) AS subscriptions, min(created) AS oldest
FROM subscription
GROUP BY 1
ORDER BY 2 DESC

-- Open invoices with their customers: invoice, customer
SELECT i.id, i.number, c.name, i.amount_due, i.currency, i.due_date
FROM invoice i
LEFT JOIN customer c ON c.id = i.customer_id
WHERE i.status = 'open'
ORDER BY i.created
LIMIT 100

-- Top customers by payments: charge, customer
SELECT c.id, c.name, ch.currency, sum(ch.amount) AS paid_minor
FROM charge ch
JOIN customer c ON c.id = ch.customer_id
WHERE ch.status = 'succeeded'
GROUP BY 1, 2, 3
ORDER BY 4 DESC
LIMIT 20

-- Events in the last hour: event
SELECT type, count(*) AS events, max(created) AS newest
FROM event
WHERE created > now() - interval '1 hour'
GROUP BY 1
ORDER BY 2 DESC

-- Prices by product: product, price
SELECT p.name, pr.id, pr.unit_amount, pr.currency, pr.recurring_interval, pr.active
FROM product p
JOIN price pr ON pr.product_id = p.id
ORDER BY p.name, pr.unit_amount
LIMIT 200
