"""`pinstripe support-bundle`: one archive for a bug report, without secrets and personal data.

It is put together from lists of what may go in, not by cutting out what may not: versions, counts, states,
codes, times, names of tables and settings, and the values of settings that are numbers or switches. Texts
of Stripe and Postgres (`reason`), ids of objects, URLs and rows stay out.
"""

from __future__ import annotations

import io
import json
import platform
import sys
import tarfile
import time
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from pinstripe.catalog.model import spec
from pinstripe.cli.status import with_data
from pinstripe.config.config import Config
from pinstripe.config.settings import SETTINGS
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.service import open_database
from pinstripe.store.pool import connect
from pinstripe.store.status import read_status

_WORDS = frozenset(
    {
        "reason",
        "remedy",
        "trouble",
        "example",
        "id",
        "what",
        "verification_note",
        "account_id",
        "digest",
    }
)
"""Fields of a status that may hold texts of Stripe's or ids."""
_UNITS = frozenset(
    {"", "requests/s", "seconds", "days", "objects", "port", "MB", "level", "time", "names"}
)
"""Units of settings whose values say nothing of anybody."""
_PACKAGES = ("pinstripe", "aiohttp", "asyncpg", "msgspec", "starlette", "uvicorn", "uvloop")


async def support_bundle(config: Config, *, output: Path | None) -> int:
    """Write the archive, and say what is in it."""
    path = output or Path(f"pinstripe-support-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    files: dict[str, object] = {
        "versions.json": await _versions(),
        "settings.json": _settings(config),
    }
    try:
        config = with_data(config)
        async with open_database(config) as database, connect(database.url) as connection:
            files["database.json"] = {
                "server": database.version,
                "own": database.server is not None,
            }
            found = msgspec.to_builtins(await read_status(connection), builtin_types=(datetime,))
            files["status.json"] = _without_words(found)
    except PinstripeError as error:
        files["database.json"] = {"error": error.slug}
    try:
        _write(path, files)
    except OSError as error:
        raise Misconfigured(
            f"Cannot write {path}: {error.strerror}.", hint="Name another file with --output."
        ) from error
    sys.stdout.write(f"Wrote {path}:" + "\n")
    for name in files:
        sys.stdout.write(f"  {name}" + "\n")
    sys.stdout.write("Look through it before you send it: it is plain JSON." + "\n")
    return 0


async def _versions() -> dict[str, object]:
    return {
        "packages": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "stripe_api": spec().api_version,
    }


def _settings(config: Config) -> dict[str, object]:
    """Values of numbers and switches; of the others only whether they are set."""
    found: dict[str, object] = {}
    for setting in SETTINGS:
        value = getattr(config, setting.name)
        shown = setting.unit in _UNITS and not setting.secret
        found[setting.name] = value if shown else value not in (None, (), "")
    return found


def _without_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: bool(v) if k in _WORDS else _without_words(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_words(item) for item in value]
    return value


def _write(path: Path, files: Mapping[str, object]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            text = json.dumps(content, indent=2, default=str).encode()
            entry = tarfile.TarInfo(f"pinstripe-support/{name}")
            entry.size, entry.mtime = len(text), int(time.time())
            archive.addfile(entry, io.BytesIO(text))
