"""Ids that decode: each is an index, scrambled by a keyed permutation and written in base 62.

A base object is a pure function of (seed, type, index), so an id must lead back to its index
without a table. The permutation makes neighbours look unrelated, as Stripe's do; ids differ in
letter case only often enough to punish a case-folding reader. Objects made later use indexes from
`FIRST_NEW`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol

import msgspec

FIRST_NEW = 1 << 40
"""Index of the first object that was not there from the start."""

_BITS = 47  # The largest whole number of bits that fits 62**8.
_MASK = (1 << _BITS) - 1
_ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE = len(_ALPHABET)
_PAIRS = tuple(bytes((a, b)) for a in _ALPHABET for b in _ALPHABET)
_TRIPLES = tuple(pair + bytes((c,)) for pair in _PAIRS for c in _ALPHABET)
"""Three characters at a time: an id costs half a microsecond, and pages hold thousands."""
_TRIPLE = _BASE**3
_DIGIT = {chr(c): n for n, c in enumerate(_ALPHABET)}
_CODE_LENGTH = 8

# Ids that users choose may hold anything (products, plans, coupons).
_CHOSEN = ("Gold / Tier ", "50% off?#&+ ", "größe-", "料金/", "a b\\c\"d'", "🦓 ")


class Ids(Protocol):
    """How one table names its objects."""

    def encode(self, index: int, part: str = "") -> str:
        """The id; `part` stands for the account among accounts that are made alike."""
        ...

    def decode(self, id: str, part: str = "") -> int | None: ...
    def quoted(self, index: int, part: str = "") -> bytes:
        """The id as JSON text."""
        ...


class ScrambledIds:
    """`prefix` + characters that stand for the account and the type + 8 that hold the index.

    `other`: a second prefix, and which of the indexes have it.
    """

    def __init__(
        self,
        *,
        seed: int,
        name: str,
        prefix: str,
        chosen: bool = False,
        other: tuple[str, Callable[[int], bool]] | None = None,
    ) -> None:
        digest = blake2b(f"{seed}/{name}".encode(), digest_size=32).digest()
        self._factor = int.from_bytes(digest[:8], "big") & _MASK | 1
        self._offset = int.from_bytes(digest[8:16], "big") & _MASK
        self._inverse = pow(self._factor, -1, 1 << _BITS)
        tag = b"".join(_PAIRS[int.from_bytes(digest[n : n + 2]) % len(_PAIRS)] for n in (16, 18))
        self._prefix = f"{prefix}_1P{tag.decode()}" if prefix else f"1P{tag.decode()}"
        self._opening = b'"' + self._prefix.encode()
        self._chosen = chosen
        self._other = f"{other[0]}_1P{tag.decode()}" if other else ""
        self._has_other = other[1] if other else None

    def _code(self, index: int) -> bytes:
        x = (index * self._factor + self._offset) & _MASK
        high, low = divmod(x ^ (x >> 24), _TRIPLE)
        high, middle = divmod(high, _TRIPLE)
        return _PAIRS[high] + _TRIPLES[middle] + _TRIPLES[low]

    def quoted(self, index: int, part: str = "") -> bytes:
        if part or (self._chosen and index % 41 == 3):
            return msgspec.json.encode(self.encode(index, part))
        x = (index * self._factor + self._offset) & _MASK
        high, low = divmod(x ^ (x >> 24), _TRIPLE)
        high, middle = divmod(high, _TRIPLE)
        opening = self._opening
        if self._has_other is not None and self._has_other(index):
            opening = b'"' + self._other.encode()
        return opening + _PAIRS[high] + _TRIPLES[middle] + _TRIPLES[low] + b'"'

    def encode(self, index: int, part: str = "") -> str:
        code = self._code(index).decode()
        if self._chosen and index % 41 == 3:
            return _CHOSEN[index // 41 % len(_CHOSEN)] + code
        other = self._has_other is not None and self._has_other(index)
        return (self._other if other else self._prefix) + part + code

    def decode(self, id: str, part: str = "") -> int | None:
        """The index, or None for an id that this table never made."""
        x = 0
        for character in id[-_CODE_LENGTH:]:
            digit = _DIGIT.get(character)
            if digit is None:
                return None
            x = x * _BASE + digit
        if x > _MASK:
            return None
        x ^= x >> 24
        index = ((x - self._offset) * self._inverse) & _MASK
        return index if self.encode(index, part) == id else None


class NaturalIds:
    """A closed list of names: countries, currencies, report types."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._index = {name: n for n, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self._names)

    def encode(self, index: int, part: str = "") -> str:
        return self._names[index] if index < len(self._names) else f"x{index}"

    def decode(self, id: str, part: str = "") -> int | None:
        return self._index.get(id)

    def quoted(self, index: int, part: str = "") -> bytes:
        return msgspec.json.encode(self.encode(index))
