"""How a value of a row is written on a page: what it is, where it leads, what stands beside it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec

from pinstripe.console.tables_shape import Shape, ShownColumn

Kind = Literal["null", "text", "number", "money", "time", "flag", "json"]

_SHORT = 160
# Amounts are in units of 10**-n of the currency; 2 where it is not named here.
# https://docs.stripe.com/currencies
_WHOLE = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"
_THOUSANDTHS = "bhd jod kwd omr tnd"
_DECIMALS = dict.fromkeys(_WHOLE.split(), 0) | dict.fromkeys(_THOUSANDTHS.split(), 3)


@dataclass(frozen=True, slots=True)
class Reference:
    """An id, and the table in which its row is; None where it cannot be followed."""

    id: str
    table: str | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One value. `beside` is the currency of an amount, `decimal` the amount in its main unit."""

    column: ShownColumn
    kind: Kind
    text: str = ""
    references: tuple[Reference, ...] = ()
    beside: str = ""
    decimal: str = ""
    at: datetime | None = None
    cut: bool = False

    @property
    def is_number(self) -> bool:
        return self.kind in ("number", "money")


def cell(shape: Shape, name: str, values: Mapping[str, object], *, whole: bool = False) -> Cell:
    """The cell of column `name`; `values` are the row's, by column. `whole`: nothing is cut."""
    column = shape.columns[name]
    value = values.get(name)
    if value is None:
        return Cell(column, "null")
    if column.references and isinstance(value, str | list):
        return Cell(column, "text", references=_references(shape, column, value, values))
    if isinstance(value, bool):
        return Cell(column, "flag", "true" if value else "false")
    if isinstance(value, int):
        return _amount(shape, column, value, values)
    if isinstance(value, Decimal | float):
        return Cell(column, "number", f"{value:f}")
    if isinstance(value, datetime):
        return Cell(column, "time", at=value)
    if column.type == "jsonb":
        return _json(column, str(value), whole=whole)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _text(column, "text", text, whole=whole)


def in_main_unit(amount: int, currency: str) -> str:
    """An amount as people write it.

    >>> in_main_unit(123456, "usd"), in_main_unit(-500, "jpy"), in_main_unit(5, "kwd")
    ('1,234.56 USD', '-500 JPY', '0.005 KWD')
    """
    places = _DECIMALS.get(currency.lower(), 2)
    return f"{Decimal(amount).scaleb(-places):,.{places}f} {currency.upper()}"


def _amount(shape: Shape, column: ShownColumn, value: int, values: Mapping[str, object]) -> Cell:
    if not column.is_money:
        return Cell(column, "number", str(value))
    beside = shape.currency_of(column)
    currency = values.get(beside) if beside else None
    if not isinstance(currency, str) or not currency:
        return Cell(column, "money", f"{value:,}")
    decimal = in_main_unit(value, currency)
    return Cell(column, "money", f"{value:,}", beside=currency, decimal=decimal)


def _references(
    shape: Shape, column: ShownColumn, value: str | list[object], values: Mapping[str, object]
) -> tuple[Reference, ...]:
    beside = shape.kind_of(column)
    kind = values.get(beside) if beside else None
    ids = [value] if isinstance(value, str) else [v for v in value if isinstance(v, str)]
    return tuple(Reference(i, shape.target(column, i, kind)) for i in ids)


def _json(column: ShownColumn, text: str, *, whole: bool) -> Cell:
    """In full as it is read best; in a list as it stands."""
    if whole:
        text = msgspec.json.format(text, indent=2)
    return _text(column, "json", text, whole=whole)


def _text(column: ShownColumn, kind: Kind, text: str, *, whole: bool) -> Cell:
    cut = len(text) > _SHORT and not whole
    return Cell(column, kind, text[:_SHORT] if cut else text, cut=cut)
