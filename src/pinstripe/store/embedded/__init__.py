"""A Postgres of our own, for a machine that has none: `EmbeddedPostgres`."""

from pinstripe.store.embedded.server import EmbeddedPostgres, running_url

__all__ = ["EmbeddedPostgres", "running_url"]
