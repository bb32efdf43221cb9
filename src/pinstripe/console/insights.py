"""The insights: revenue, payments and payouts of one currency on one page, each with the SQL behind it.

Everything is read from the views of `metrics` (docs/concepts/metrics.md) by the very statements that the
page links to; the SQL page runs them as they are. A panel whose tables are not synced says so, the others
go on. Charts are SVG made here, of classes that the stylesheet colours: the libraries that were tried
write style and script elements, which the page's policy forbids, or fixed colours (decision 025).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from urllib.parse import quote

import asyncpg
from markupsafe import Markup
from starlette.responses import Response

from pinstripe.console.page_context import PageContext
from pinstripe.console.rows import money
from pinstripe.console.sql_run import STATEMENT_S
from pinstripe.console.templating import path_of
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.gateway.deps import Gateway
from pinstripe.store.cursors import load_checkpoints
from pinstripe.store.ddl import literal
from pinstripe.store.ddl import quote as quote_name
from pinstripe.store.metrics import metrics_schema
from pinstripe.store.pool import sqlstate, translated

_LONGEST_S = 5.0
_UNDEFINED_TABLE, _QUERY_CANCELED = "42P01", "57014"
_CODE = re.compile(r"[a-z]{3}")

_READ = {
    "balance_transaction", "charge", "customer", "invoice", "line_item", "payout", "price", "refund",
    "subscription", "subscription_item",
}  # fmt: skip
"""What the views read first of all."""

# By subscriptions: amounts of two currencies cannot be compared.
_CURRENCIES = """SELECT currency, sum(weight) AS weight FROM (
  SELECT currency, subscriptions AS weight FROM {mrr}
  UNION ALL SELECT currency, 0 FROM {payment_by_day} GROUP BY 1
  UNION ALL SELECT currency, 0 FROM {payout_statement} GROUP BY 1
) AS each WHERE currency IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"""


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of a chart: what it is, the class that colours it, a value for each label."""

    name: str
    colour: str
    values: Sequence[int]


@dataclass(frozen=True, slots=True)
class Panel:
    """One question, the statement that answers it, and how its rows become a chart (None: a table alone).

    `money`: columns that hold amounts. `empty`: what it means that there are no rows.
    """

    title: str
    sql: str
    money: frozenset[str] = frozenset()
    series: tuple[tuple[str, str], ...] = ()
    empty: str = "Nothing yet."
    newest_first: bool = False
    """Whether the table turns the order of the chart round."""


@dataclass(slots=True)
class Answer:
    """A panel with its rows, or with the reason why it has none."""

    panel: Panel
    link: str
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    numbers: frozenset[str] = frozenset()
    chart: Markup | None = None
    problem: str = ""


async def show(visit: PageContext) -> Response:
    """The page, in the currency of `?currency=` or the one with the most subscriptions."""
    metrics = metrics_schema(visit.sync.schema)
    problem, lacking, away = "", "", False
    currencies: list[str] = []
    live = (await visit.gateway.board.fresh()).get(visit.sync.id)
    try:
        async with visit.gateway.reads.connection(longest_s=_LONGEST_S) as connection:
            lists = await load_checkpoints(connection, visit.sync.schema)
        withheld = {c.table for c in lists.values() if c.state in ("refused", "failed")}
        lacking = ", ".join(sorted(withheld & _READ))
        found = await _rows(visit.gateway, _named(_CURRENCIES, metrics))
        currencies = [str(row[0]) for row in found]
    except PinstripeError as error:
        problem = _reason(error)
        away = isinstance(error, Unreachable) and not _is_slow(error)
    wanted = visit.text("currency")
    currency = wanted if _CODE.fullmatch(wanted) else next(iter(currencies), "usd")
    # Each panel of a database that is away would wait for as long once more.
    answers = [
        await _answer(visit.gateway, panel, visit.sync.id, currency)
        for panel in ([] if away else panels(metrics, currency))
    ]
    return visit.page(
        "insights.html",
        currency=currency,
        currencies=currencies,
        metrics=metrics,
        now=answers[0] if answers else None,
        answers=answers[1:],
        problem=problem,
        lacking=lacking,
        standing="" if live is None or live.ready or away else live.reason,
    )


def panels(metrics: str, currency: str) -> list[Panel]:
    """The panels of the page, each a complete statement. The first is the row of numbers on top."""

    def panel(title: str, sql: str, money: str = "", **more: object) -> Panel:
        told = _named(sql, metrics).replace("{currency}", literal(currency))
        return Panel(title, told, frozenset(money.split()), **more)  # type: ignore[arg-type]

    return [
        panel("Now", _NOW, "mrr arr mrr_per_customer lifetime_value"),
        panel(
            "Monthly recurring revenue",
            _MRR,
            "mrr",
            series=(("mrr", "blue"),),
            newest_first=True,
            empty="No subscription has brought revenue in this currency.",
        ),
        panel(
            "MRR movements",
            _MOVEMENT,
            "starting new expansion reactivation contraction churn ending",
            series=(
                ("new", "good"),
                ("expansion", "blue"),
                ("reactivation", "soft"),
                ("contraction", "warn"),
                ("churn", "bad"),
            ),
            newest_first=True,
        ),
        panel(
            "Payments by day",
            _PAYMENTS,
            "amount failed_amount",
            series=(("amount", "good"), ("failed_amount", "bad")),
            newest_first=True,
            empty="No payment in the last 30 days.",
        ),
        panel("Failed payments", _FAILED, "amount", empty="None in the last 30 days."),
        panel(
            "Upcoming invoices",
            _UPCOMING,
            "amount_due",
            series=(("amount_due", "blue"),),
            empty="None in the next 30 days.",
        ),
        panel("Payouts", _PAYOUTS, "amount lines_total difference", empty="No payout yet."),
        panel("Not paid out yet", _NOT_PAID_OUT, "amount", empty="Nothing waits."),
    ]


_NOW = """SELECT m.mrr, m.arr, m.subscriptions, m.customers, l.mrr_per_customer, l.lifetime_value
FROM {mrr} AS m LEFT JOIN {lifetime_value} AS l USING (currency)
WHERE m.currency = {currency}"""

_MRR = """SELECT month, mrr, subscriptions, customers
FROM {mrr_by_month}
WHERE currency = {currency} AND month > now() - interval '13 months'
ORDER BY month"""

_MOVEMENT = """SELECT month, starting, new, expansion, reactivation, contraction, churn, ending
FROM {mrr_movement}
WHERE currency = {currency} AND month > now() - interval '13 months'
ORDER BY month"""

_PAYMENTS = """SELECT d.day::date, coalesce(payments, 0) AS payments, coalesce(amount, 0) AS amount,
  coalesce(failed, 0) AS failed, coalesce(failed_amount, 0) AS failed_amount
FROM {settings} AS s CROSS JOIN LATERAL (SELECT (now() AT TIME ZONE s.time_zone)::date) AS local (today)
CROSS JOIN LATERAL generate_series(today - 29, today, interval '1 day') AS d (day)
LEFT JOIN {payment_by_day} AS p ON p.day = d.day::date AND p.currency = {currency}
ORDER BY 1"""

_FAILED = """SELECT created, charge_id, customer_id, amount, failure_code, failure_message
FROM {failed_payment}
WHERE currency = {currency} AND created > now() - interval '30 days'
ORDER BY created DESC LIMIT 20"""

_UPCOMING = """SELECT (u.at AT TIME ZONE s.time_zone)::date AS day, count(*) AS invoices,
  sum(u.amount_due)::bigint AS amount_due
FROM {upcoming_invoice} AS u CROSS JOIN {settings} AS s
WHERE currency = {currency} AND at BETWEEN now() AND now() + interval '30 days'
GROUP BY 1 ORDER BY 1"""

_PAYOUTS = """SELECT created, payout_id, status, amount, lines, lines_total, difference, state, explanation
FROM {payout_statement}
WHERE currency = {currency}
ORDER BY created DESC LIMIT 12"""

_NOT_PAID_OUT = """SELECT reason, amount, transactions, until, explanation
FROM {not_paid_out}
WHERE currency = {currency}
ORDER BY reason"""


def _named(sql: str, metrics: str) -> str:
    """The statement with the names of the views; `{currency}` stays."""
    plain = re.fullmatch(r"[a-z_][a-z0-9_]*", metrics)
    prefix = metrics if plain else quote_name(metrics)
    return re.sub(r"\{(?!currency\})(\w+)\}", rf"{prefix}.\1", sql)


async def _rows(gateway: Gateway, sql: str) -> list[asyncpg.Record]:
    async with gateway.reads.connection(longest_s=_LONGEST_S) as connection:
        with translated():
            rows: list[asyncpg.Record] = await connection.fetch(sql)
    return rows


async def _answer(gateway: Gateway, panel: Panel, sync_id: str, currency: str) -> Answer:
    made = Answer(panel, f"{path_of(sync_id, 'sql')}#sql={quote(panel.sql)}")
    try:
        rows = await _rows(gateway, panel.sql)
    except PinstripeError as error:
        made.problem = _reason(error)
        return made
    if not rows:
        return made
    made.columns = tuple(rows[0].keys())
    made.numbers = (
        frozenset(name for name in made.columns if isinstance(rows[0][name], (int, Decimal)))
        | panel.money
    )
    made.rows = [
        tuple(_text(row[name], currency if name in panel.money else "") for name in made.columns)
        for row in rows
    ]
    if panel.series:
        series = [
            Series(name.replace("_", " "), colour, [int(row[name] or 0) for row in rows])
            for name, colour in panel.series
        ]
        made.chart = bars(
            panel.title,
            [row[0].strftime("%b %Y" if "month" in row.keys() else "%-d %b") for row in rows],  # noqa: SIM118
            series,
            lambda amount: money(amount, currency),
        )
    if panel.newest_first:
        made.rows.reverse()
    return made


def _reason(error: PinstripeError) -> str:
    """Why a panel is empty, for someone who reads the page and not the log."""
    if sqlstate(error) == _UNDEFINED_TABLE:
        return (
            "What this reads is not synced (the key may not read it, or --tables leaves it out), or the"
            " views were left out (PINSTRIPE_NO_METRICS, metrics.left_out in the log)."
            f" {error.message}"
        )
    if _is_slow(error):
        return f"Canceled after {_LONGEST_S:.0f} s. Run its SQL, which may take {STATEMENT_S} s."
    return f"{error.message} {error.hint}" if isinstance(error, Unreachable) else error.message


def _is_slow(error: PinstripeError) -> bool:
    return sqlstate(error.__cause__ or error) == _QUERY_CANCELED


def _text(value: object, currency: str) -> str:
    if value is None:
        return "–"
    if currency and isinstance(value, int):
        return money(value, currency)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    if isinstance(value, date):
        return value.isoformat()
    return f"{value:,}" if isinstance(value, int) else str(value)


_WIDE, _HIGH, _TOP, _BOTTOM = 640, 220, 10, 24
_LEFT, _DIGIT, _WIDEST = 84, 8, 48
"""The least width of the amounts beside a chart, of a digit, and the largest of a bar; on a phone amounts
reach into the margin."""


def bars(
    title: str, labels: Sequence[str], series: Sequence[Series], told: Callable[[int], str]
) -> Markup:
    """A chart of stacked bars, those below zero downwards, as SVG. `told` writes an amount."""
    ups = [sum(max(s.values[n], 0) for s in series) for n in range(len(labels))]
    downs = [sum(min(s.values[n], 0) for s in series) for n in range(len(labels))]
    top, low = max([*ups, 0]), min([*downs, 0])
    scale = (_HIGH - _TOP - _BOTTOM) / ((top - low) or 1)
    zero = _TOP + top * scale
    marks = {_TOP: top, zero: 0} | ({_HIGH - _BOTTOM: low} if low else {})
    left = max(_LEFT, 12 + max(_DIGIT * len(told(amount)) for amount in marks.values()))
    step = (_WIDE - left) / max(len(labels), 1)
    wide = min(step * 0.76, _WIDEST)
    parts = [
        Markup('<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, _WIDE, y, y)
        for y in sorted({_TOP, zero, _HIGH - _BOTTOM})
    ]
    for n, label in enumerate(labels):
        up, down = zero, zero
        for one in series:
            high = abs(one.values[n]) * scale
            if not one.values[n]:
                continue
            y = up - high if one.values[n] > 0 else down
            up, down = (y, down) if one.values[n] > 0 else (up, down + high)
            parts.append(
                Markup(
                    '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{}: {} {}</title></rect>"
                ).format(
                    one.colour, left + (n + 0.5) * step - wide / 2, y, wide, max(high, 0.5),
                    label, one.name, told(one.values[n]),
                )
            )  # fmt: skip
    parts += [
        Markup('<text x="{}" y="{:.1f}" class="end">{}</text>').format(left - 8, y + 4, told(v))
        for y, v in marks.items()
    ]
    every = max(1, len(labels) // 5)
    parts += [
        Markup('<text x="{:.1f}" y="{}" class="mid">{}</text>').format(
            left + (n + 0.5) * step, _HIGH - 6, labels[n]
        )
        for n in range(0, len(labels), every)
    ]
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(
        _WIDE, _HIGH, f"{title}: the numbers are in the table beside it", Markup("").join(parts)
    )
