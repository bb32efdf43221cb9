"""Generates the pages of `docs/reference/` that say what the code knows: tables, settings, commands."""
