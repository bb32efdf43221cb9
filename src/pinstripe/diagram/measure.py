"""How large a box is, and where in it its rows stand. Plain arithmetic, in pixels; sizes are even
numbers, so that middles are whole and lines run straight.

Text is in a monospaced font, so that its width is known without the reader's machine: fonts of that
kind are 0.55 to 0.61 of their size wide, and the widest is taken.
"""

from __future__ import annotations

from math import ceil

from pinstripe.diagram.model import Box, Link, Row

HEAD = 30.0
ROW = 20.0
FOOT = 6.0
MORE = 18.0
"""The line at the foot that counts what is left out."""
PAD = 10.0
MARK = 14.0
"""The room for the mark of a key or a reference, left of a row's text."""
GAP = 18.0
"""Between a name and the note at its right."""
TITLE_SIZE, TEXT_SIZE = 12.5, 11.0
_WIDTH_PER_SIZE = 0.615
_LONGEST_NAME, _LONGEST_NOTE = 38, 30
_DOMAIN = (190.0, 58.0)


def size_of(box: Box) -> tuple[float, float]:
    """Width and height of a box, in whole pixels."""
    if box.kind == "domain":
        return _even(max(_DOMAIN[0], text_width(box.title, TITLE_SIZE) + 4 * PAD)), _DOMAIN[1]
    widths = [text_width(box.title, TITLE_SIZE) + 2 * PAD, *map(_row_width, box.rows)]
    if box.hidden:
        widths.append(text_width(more_text(box), TEXT_SIZE) + 2 * PAD + MARK)
    height = HEAD + ROW * len(box.rows) + FOOT + (MORE if box.hidden else 0.0)
    return _even(max(widths)), height


def _even(least: float) -> float:
    return 2.0 * ceil(least / 2)


def row_middle(index: int) -> float:
    """How far below the box's top the middle of a row is."""
    return HEAD + ROW * index + ROW / 2 + FOOT / 2


def port_of(box: Box, row: int | None) -> float:
    """Where a link meets the box's side, from its top."""
    if box.kind == "domain":
        return _DOMAIN[1] / 2
    return HEAD / 2 if row is None else row_middle(row)


def landing(box: Box) -> int | None:
    """The row of a box that references lead to: its key."""
    return 0 if box.rows and box.rows[0].kind == "key" else None


def label_size(link: Link) -> tuple[float, float]:
    """The room for the number on a line that stands for several references."""
    return text_width(str(link.count), TEXT_SIZE) + 6, TEXT_SIZE + 3


def name_text(row: Row) -> str:
    return shortened(row.name, 60 if row.kind == "table" else _LONGEST_NAME)


def note_text(row: Row) -> str:
    return shortened(row.note, _LONGEST_NOTE)


def more_text(box: Box) -> str:
    return f"{box.hidden} more column{'' if box.hidden == 1 else 's'}"


def shortened(text: str, longest: int) -> str:
    """`text`, with its middle left out if it is longer than `longest` letters.

    >>> shortened("payment_method_options", 15)
    'payment…options'
    """
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[: longest - 1 - half]}…{text[-half:]}"


def text_width(text: str, size: float) -> float:
    return len(text) * size * _WIDTH_PER_SIZE


def _row_width(row: Row) -> float:
    name, note = name_text(row), note_text(row)
    gap = GAP if note else 0.0
    return 2 * PAD + MARK + text_width(name, TEXT_SIZE) + gap + text_width(note, TEXT_SIZE)
