"""A hook of mkdocs: a folder in the navigation (`decisions/`) stands for all of its pages, by name.

Generated pages and decisions come and go; nobody should have to list them by hand.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig

_INDEXES = ("index.md", "README.md")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Called by mkdocs once the configuration is read."""
    config.nav = _spread(config.nav, Path(config.docs_dir))
    return config


def _spread(entry: object, docs: Path) -> object:
    """`entry` with each folder replaced by its pages, the index first."""
    if isinstance(entry, list):
        return [_spread(part, docs) for part in entry]
    if isinstance(entry, dict):
        return {title: _spread(part, docs) for title, part in entry.items()}
    if isinstance(entry, str) and entry.endswith("/"):
        pages = [p.relative_to(docs).as_posix() for p in (docs / entry).glob("*.md")]
        return sorted(pages, key=lambda page: (not page.endswith(_INDEXES), page))
    return entry
