"""What a benchmark found: a figure, its target, and whether it is met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["more", "less"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. Without a target it is only told, never missed."""

    bench: str
    what: str
    value: float
    unit: str
    target: float | None = None
    better: Better = "less"

    @property
    def ratio(self) -> float | None:
        """How much of the target is used (`less`), or reached (`more`)."""
        return self.value / self.target if self.target else None

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        return self.value >= self.target if self.better == "more" else self.value <= self.target

    def as_json(self) -> dict[str, object]:
        return {
            "bench": self.bench,
            "what": self.what,
            "value": round(self.value, 3),
            "unit": self.unit,
            "target": self.target,
            "better": self.better if self.target is not None else None,
            "ratio": round(self.ratio, 3) if self.ratio is not None else None,
            "met": self.met,
        }


def table(figures: Sequence[Figure]) -> str:
    """The figures as lines for people."""
    head = f"{'bench':<11} {'what':<58} {'measured':>20}  {'target':>10}  {'ratio':>6}"
    return "\n".join([head, "-" * len(head), *(_line(figure) for figure in figures)])


def _line(figure: Figure) -> str:
    measured = f"{_number(figure.value)} {figure.unit}"
    target, ratio = "", ""
    if figure.target is not None:
        sign = ">=" if figure.better == "more" else "<="
        target = f"{sign} {_number(figure.target)}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    verdict = "" if figure.target is None else "  ok" if figure.met else "  MISSED"
    return f"{figure.bench:<11} {figure.what:<58} {measured:>20}  {target:>10}  {ratio:>6}{verdict}"


def _number(value: float) -> str:
    """With three or four digits that say something.

    >>> _number(123456.7), _number(12.345), _number(0.98765)
    ('123,457', '12.3', '0.988')
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
