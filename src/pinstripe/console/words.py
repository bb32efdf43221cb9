"""How the console writes numbers, times and states: filters of the templates. Pure."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from markupsafe import Markup

_STEPS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))

STATES = {
    "done": "good",
    "running": "blue",
    "starting": "blue",
    "found": "",
    "paused": "warn",
    "refused": "warn",
    "failed": "bad",
    "stopped": "bad",
}
"""State -> the colour of its badge."""


def number(value: float | None) -> str:
    """Digits in groups of three.

    >>> number(1234567), number(0.25), number(None)
    ('1,234,567', '0.25', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"


def span(seconds: float | None) -> str:
    """A length of time, short.

    >>> span(0.0412), span(3.2), span(75), span(7300), span(200000), span(None)
    ('41 ms', '3.2 s', '1 min 15 s', '2 h 1 min', '2 d 7 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    rest = round(seconds)
    for (size, unit), (lower, lower_unit) in zip(_STEPS, (*_STEPS[1:], (1.0, "s")), strict=True):
        if rest >= size:
            more = int(rest % size // lower)
            return f"{int(rest // size)} {unit}" + (f" {more} {lower_unit}" if more else "")
    return f"{rest} s"


def size(count: int) -> str:
    """Bytes, as people read them.

    >>> size(0), size(8192), size(1_300_000), size(2_500_000_000)
    ('0', '8 kB', '1.3 MB', '2.5 GB')
    """
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            value = count / step
            return f"{value:.1f} {unit}" if value < 10 and step > 10**3 else f"{value:.0f} {unit}"
    return str(count)


def moment(value: datetime | float | None) -> Markup:
    """A `<time>` that the browser can tell in the reader's zone."""
    if value is None:
        return Markup('<span class="faint">–</span>')
    at = value if isinstance(value, datetime) else datetime.fromtimestamp(value, UTC)
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds"), at.strftime("%Y-%m-%d %H:%M:%S")
    )


def clock(value: datetime) -> Markup:
    """The time of the day alone, for what has just happened; the day stands behind it."""
    at = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds"), at.strftime("%H:%M:%S")
    )


def ago(value: datetime | float | None, now: float | None = None) -> Markup:
    """How long since, with the moment itself behind it."""
    if value is None:
        return Markup('<span class="faint">–</span>')
    at = value if isinstance(value, datetime) else datetime.fromtimestamp(value, UTC)
    since = (time.time() if now is None else now) - at.timestamp()
    return Markup('<time datetime="{}">{} ago</time>').format(
        at.astimezone(UTC).isoformat(timespec="milliseconds"), span(max(since, 0.0))
    )


def badge(text: str, colour: str | None = None) -> Markup:
    """A state in its colour."""
    chosen = STATES.get(text, "") if colour is None else colour
    return Markup('<span class="badge {}">{}</span>').format(chosen, text)


def mode_badge(livemode: bool | None) -> Markup:
    if livemode is None:
        return Markup("")
    return badge("live mode", "live") if livemode else badge("test mode", "test")


def sparkline(values: list[float], *, ceiling: float | None = None) -> Markup:
    """A line of the values, oldest first, as SVG that stretches to its place."""
    if len(values) < 2:
        return Markup('<p class="faint small">Not enough measured yet.</p>')
    top = max(*values, ceiling or 0.0) or 1.0
    points = [
        f"{n * 100 / (len(values) - 1):.2f},{29 - 27 * min(v, top) / top:.2f}"
        for n, v in enumerate(values)
    ]
    line = "M" + " L".join(points)
    return Markup(
        '<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="area" d="{0} L100,30 L0,30 Z"/><path d="{0}"/></svg>'
    ).format(line)
