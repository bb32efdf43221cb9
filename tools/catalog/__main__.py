"""`python -m tools.catalog [--check]`: write the catalog, or say whether it is fresh."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from pinstripe.catalog.model import Spec
from tools.catalog.objects import class_names, event_types, object_types
from tools.catalog.operations import operations
from tools.catalog.source import api_version, sdk_version

DATA = Path(__file__).parents[2] / "src" / "pinstripe" / "catalog" / "data"


def generate() -> dict[str, str]:
    """File name -> text of every generated file. Deterministic."""
    objects = object_types()
    spec = Spec(
        api_version=api_version(),
        sdk_version=sdk_version(),
        objects=objects,
        operations=operations(class_names()),
        events=event_types(objects),
    )
    plain = msgspec.json.decode(msgspec.json.encode(spec))
    return {
        "spec.json": _lines(
            {"api_version": plain["api_version"], "sdk_version": plain["sdk_version"]}
        ),
        "objects.json": _lines(plain["objects"]),
        "operations.json": _lines(plain["operations"]),
        "events.json": _lines(plain["events"]),
    }


def _lines(value: object) -> str:
    """JSON that diffs well: one property of an object type, one parameter a line."""
    if isinstance(value, dict):
        return json.dumps(value, indent=1) + "\n"
    assert isinstance(value, list)
    blocks: list[str] = []
    for item in value:
        nested = next((k for k in ("fields", "params") if k in item), None)
        if nested is None:
            blocks.append(json.dumps(item, ensure_ascii=False))
            continue
        head = {k: v for k, v in item.items() if k != nested}
        inner = ",\n  ".join(json.dumps(f, ensure_ascii=False) for f in item[nested])
        blocks.append(json.dumps(head, ensure_ascii=False)[:-1] + f', "{nested}": [\n  {inner}]}}')
    return "[\n" + ",\n".join(blocks) + "\n]\n"


def main() -> int:
    files = generate()
    stale = [
        n for n, text in files.items() if not (DATA / n).exists() or (DATA / n).read_text() != text
    ]
    if "--check" in sys.argv:
        print("stale: " + ", ".join(stale) + "; run `make catalog`" if stale else "fresh")
        return 1 if stale else 0
    DATA.mkdir(exist_ok=True)
    for name, text in files.items():
        (DATA / name).write_text(text)
    print("changed: " + ", ".join(stale) if stale else "unchanged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
