"""The charts of the insights."""

from __future__ import annotations

from pinstripe.console.insights import Series, bars


def test_one_bar_is_no_wall() -> None:
    assert 'width="48.0"' in bars("Revenue", ["Dec"], [Series("mrr", "blue", [5])], str)
