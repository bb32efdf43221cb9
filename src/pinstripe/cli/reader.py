"""`pinstripe reader`: the role that only reads, made, given a new password, and dropped."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable

from pinstripe.cli.standing import with_data
from pinstripe.config import Config
from pinstripe.service import open_database
from pinstripe.store.reader_role import Reader, drop_reader

Make = Callable[[str, str], Awaitable[Reader]]


async def make(config: Config, make_reader: Make, *, as_json: bool) -> int:
    """Makes or rotates the role and shows, this once, how to connect as it."""
    config = with_data(config)
    async with open_database(config) as database:
        reader = await make_reader(database.url, config.schema)
    if as_json:
        told = {"role": reader.role, "password": reader.password, "url": reader.url}
        sys.stdout.write(json.dumps(told) + "\n")
        return 0
    sys.stderr.write(
        f'The role {reader.role} reads the schema "{config.schema}" and nothing else.\n'
        "Its password is shown now and never again:\n"
    )
    sys.stdout.write(reader.url + "\n")
    return 0


async def drop(config: Config, *, as_json: bool) -> int:
    """Drops the role, if there is one."""
    config = with_data(config)
    async with open_database(config) as database:
        dropped = await drop_reader(database.url, config.schema)
    if as_json:
        sys.stdout.write(json.dumps({"dropped": dropped}) + "\n")
    else:
        words = "was dropped" if dropped else "does not exist"
        sys.stdout.write(f'The reader of the schema "{config.schema}" {words}.\n')
    return 0
