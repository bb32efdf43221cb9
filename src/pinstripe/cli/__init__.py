"""The command line: `pinstripe`."""

from pinstripe.cli.app import main

__all__ = ["main"]
