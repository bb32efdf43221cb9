"""The page of commands, as the command line itself describes them."""

from __future__ import annotations

import sys

from pinstripe.cli.app import app


def commands_page() -> str:
    """`docs/reference/cli.md`."""
    # cyclopts writes the name of the running program into usage lines; here that is not `pinstripe`.
    running, sys.argv[0] = sys.argv[0], "pinstripe"
    try:
        text: str = app.generate_docs()
    finally:
        sys.argv[0] = running
    return text.replace("# pinstripe\n", "# Commands\n", 1)
