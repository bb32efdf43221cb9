"""Text and the edges of fields stand out from what is behind them, light and dark (WCAG 2.2, AA)."""

from __future__ import annotations

import re

import pytest

from pinstripe.console.templating import STATIC

CSS = (STATIC / "console.css").read_text()
COLOURS = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", CSS)
SCHEMES = [{name: light for name, light, _ in COLOURS}, {name: dark for name, _, dark in COLOURS}]
GROUNDS = ("paper", "panel", "sunken")


def luminance(colour: str) -> float:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES, ids=("light", "dark"))
@pytest.mark.parametrize("ground", GROUNDS)
def test_text_can_be_read(scheme: dict[str, str], ground: str) -> None:
    texts = ("ink", "soft", "faint", "blue", "good", "warn", "bad", "thread")
    weak = {t: contrast(scheme[t], scheme[ground]) for t in texts}
    assert {t: c for t, c in weak.items() if c < 4.5} == {}


@pytest.mark.parametrize("scheme", SCHEMES, ids=("light", "dark"))
@pytest.mark.parametrize("name", ["good", "warn", "bad", "blue", "thread"])
def test_badges_can_be_read(scheme: dict[str, str], name: str) -> None:
    assert contrast(scheme[name], scheme[f"{name}-soft"]) >= 4.5


@pytest.mark.parametrize("scheme", SCHEMES, ids=("light", "dark"))
@pytest.mark.parametrize("ground", ["paper", "panel"])
def test_fields_can_be_seen(scheme: dict[str, str], ground: str) -> None:
    assert contrast(scheme["edge"], scheme[ground]) >= 3
