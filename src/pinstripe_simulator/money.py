"""Amounts of computed objects: integers in the smallest unit, now and then beyond 32 bits."""

from __future__ import annotations


def amount_of(index: int) -> int:
    """What object number `index` costs."""
    amount = 100 + index * 7919 % 99_991
    return amount + 5_000_000_000 if index % 997 == 5 else amount


def fee_of(amount: int) -> int:
    """2.9 % and 30 for money that comes in, nothing for what goes out."""
    return amount * 29 // 1000 + 30 if amount > 0 else 0
