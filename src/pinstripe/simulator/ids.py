"""Ids that decode: each is an index, scrambled by a keyed permutation and written in base 62.

A base object is a pure function of (seed, type, index), so an id must lead back to its index without
a table. The permutation makes neighbours look unrelated, as Stripe's do; ids differ in letter case
only often enough to punish a case-folding reader. Objects made later use indexes from `FIRST_NEW`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

FIRST_NEW = 1 << 40
"""Index of the first object that was not there from the start."""

_BITS = 47  # The largest whole number of bits that fits 62**8.
_MASK = (1 << _BITS) - 1
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_VALUE = {pair: n for n, pair in enumerate(_PAIRS)}
_SQUARE = 62 * 62
_FOURTH = _SQUARE * _SQUARE

# Ids that users choose may hold anything (products, plans, coupons): STRIPE.md 32.
_CHOSEN = ("Gold / Tier ", "50% off?#&+ ", "größe-", "料金/", "a b\\c\"d'", "🦓 ")


class Ids(Protocol):
    """How one table names its objects."""

    def encode(self, index: int) -> str: ...
    def decode(self, id: str) -> int | None: ...


class ScrambledIds:
    """`prefix` + 16 constant characters of the account and the type + 8 that hold the index."""

    def __init__(self, *, seed: int, name: str, prefix: str, chosen: bool = False) -> None:
        digest = blake2b(f"{seed}/{name}".encode(), digest_size=32).digest()
        self._factor = int.from_bytes(digest[:8], "big") & _MASK | 1
        self._second = int.from_bytes(digest[8:16], "big") & _MASK | 1
        self._offset = int.from_bytes(digest[16:24], "big") & _MASK
        self._factor_inverse = pow(self._factor, -1, 1 << _BITS)
        self._second_inverse = pow(self._second, -1, 1 << _BITS)
        tag = "".join(_PAIRS[b % _SQUARE] for b in digest[24:30])
        self._prefix = f"{prefix}_1P{tag}" if prefix else f"1P{tag}"
        self._chosen = chosen

    def encode(self, index: int) -> str:
        x = (index * self._factor + self._offset) & _MASK
        x = ((x ^ (x >> 24)) * self._second) & _MASK
        high, low = divmod(x ^ (x >> 24), _FOURTH)
        a, b = divmod(high, _SQUARE)
        c, d = divmod(low, _SQUARE)
        code = _PAIRS[a] + _PAIRS[b] + _PAIRS[c] + _PAIRS[d]
        if self._chosen and index % 41 == 3:
            return _CHOSEN[index // 41 % len(_CHOSEN)] + code
        return self._prefix + code

    def decode(self, id: str) -> int | None:
        """The index, or None for an id that this table never made."""
        code = id[-8:]
        x = 0
        for at in range(0, 8, 2):
            value = _VALUE.get(code[at : at + 2])
            if value is None:
                return None
            x = x * _SQUARE + value
        if x > _MASK:
            return None
        x = x ^ (x >> 24)
        x = (x * self._second_inverse) & _MASK
        x = x ^ (x >> 24)
        index = ((x - self._offset) * self._factor_inverse) & _MASK
        return index if self.encode(index) == id else None


class NaturalIds:
    """A closed list of names: countries, currencies, report types."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._index = {name: n for n, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self._names)

    def encode(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"x{index}"

    def decode(self, id: str) -> int | None:
        return self._index.get(id)
