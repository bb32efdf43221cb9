"""Examples that do not pass, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

LEFT_OUT: Mapping[str, str] = {
    "test_test_helpers_customers_fund_cash_balance_post": (
        "the simulator's cash balances move by no test helper"
    ),
}
