"""How a diagram looks: one style sheet, light and dark, with a colour for each domain.

The style sheet is inside a file that stands alone. A page that shows diagrams serves `stylesheet()`
itself, because a strict content security policy does not let it stand in the page. There a script may
give the drawing the class `pointing` and the lines of one table (`data-from`, `data-to`) the class `near`.
"""

from __future__ import annotations

from functools import cache

from pinstripe.catalog.domains import DOMAINS

_BASE = """
.erd{--paper:#fff;--card:#fff;--ink:#1b2230;--soft:#5b6678;--rule:#d5dbe5;--line:#8b97aa;--glow:#4353ff;
 background:var(--paper);color:var(--ink);font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,
 "DejaVu Sans Mono","Liberation Mono",monospace;font-size:11px}
.erd text{fill:var(--ink)}
.erd .paper{fill:var(--paper)}
.erd .card{fill:var(--card);stroke:var(--rule)}
.erd .head{fill:hsl(var(--hue) 62% 93%)}
.erd .edge{fill:none;stroke:hsl(var(--hue) 60% 48%);stroke-width:3}
.erd .title{font-size:12.5px;font-weight:600}
.erd .note,.erd .more,.erd .count{fill:var(--soft)}
.erd .note{text-anchor:end}
.erd .key{font-weight:600}
.erd .mark{fill:hsl(var(--hue) 45% 45%)}
.erd .main .card{stroke:var(--glow);stroke-width:2}
.erd .wire{fill:none;stroke:var(--line);stroke-width:1.3}
.erd .link circle,.erd .tip{fill:var(--line)}
.erd .number{font-size:10.5px;fill:var(--soft);text-anchor:middle;paint-order:stroke;
 stroke:var(--paper);stroke-width:4px}
.erd a{text-decoration:none;outline:none}
.erd .box:hover .card,.erd .box:has(:focus-visible) .card{stroke:var(--glow);stroke-width:1.8}
.erd a:hover text{text-decoration:underline}
.erd.pointing .link:not(.near){opacity:.12}
.erd .link:hover .wire{stroke:var(--glow);stroke-width:2.2}
"""
_DARK = """
.erd{--paper:#12161d;--card:#1a2029;--ink:#e6eaf1;--soft:#96a2b4;--rule:#343d4b;--line:#66758a;--glow:#8c9bff}
.erd .head{fill:hsl(var(--hue) 34% 24%)}
.erd .edge{stroke:hsl(var(--hue) 50% 58%)}
.erd .mark{fill:hsl(var(--hue) 50% 66%)}
"""


@cache
def stylesheet() -> str:
    """The whole style sheet. `data-theme` (light, dark) on an ancestor wins over the system's."""
    hues = "".join(f".erd .d-{name}{{--hue:{hue}}}\n" for name, hue in _hues().items())
    chosen = _DARK.replace("\n.erd", '\n[data-theme="dark"] .erd')
    system = _DARK.replace("\n.erd", '\n:root:not([data-theme="light"]) .erd')
    return f"{_BASE.strip()}\n{hues}@media (prefers-color-scheme:dark){{{system}}}{chosen}"


def alone() -> str:
    """As `stylesheet`, for a file of its own, where the drawing is the root and the system decides."""
    hues = "".join(f".erd .d-{name}{{--hue:{hue}}}\n" for name, hue in _hues().items())
    return f"{_BASE.strip()}\n{hues}@media (prefers-color-scheme:dark){{{_DARK}}}"


def _hues() -> dict[str, int]:
    """A hue for each domain, as far from its neighbours as the circle allows."""
    count = len(DOMAINS)
    # Steps of nearly half the circle: domains that stand together in the list look different.
    return {name: round(225 + i * 360 * 7 / count) % 360 for i, name in enumerate(DOMAINS)}
