"""How many columns of other products' tables the views of `--compat` have: `python -m tools.compat`."""

from __future__ import annotations

from pinstripe.catalog.tables import tables
from pinstripe.store.compat import shapes, view_columns


def main() -> None:
    """One line a product, and one for each table that lacks some."""
    for product, shape in shapes().items():
        lacking: dict[str, list[str]] = {}
        wanted = 0
        for name, view in shape.views.items():
            there = {column for column, _ in view_columns(shape, view, tables()[view.table])}
            wanted += len(view.columns)
            lacking[name] = [c for c in view.columns if c not in there]
        found = wanted - sum(map(len, lacking.values()))
        print(
            f"{product}: {found} of {wanted} columns ({found / wanted:.1%}). Source: {shape.source}"
        )
        for name, columns in lacking.items():
            if columns:
                print(f"  {name} lacks {', '.join(columns)}")


if __name__ == "__main__":
    main()
