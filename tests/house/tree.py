"""The repository's own files, for the tests that guard the house."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pinstripe"
SIMULATOR = "simulator/"

_NOT_OURS = frozenset({"__pycache__", "dist", "node_modules", "site"})


def files(*folders: str) -> Iterator[Path]:
    """Every file of the repository, or of these folders of it; hidden ones and products left out."""
    for folder in folders or (".",):
        yield from _below(ROOT / folder)


@cache
def _below(folder: Path) -> tuple[Path, ...]:
    """Hidden folders are not entered: the environment has thousands of files."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name not in _NOT_OURS and path.name[0] != ".":
            found += _below(path) if path.is_dir() else [path]
    return tuple(found)


def modules(*folders: str) -> Iterator[Path]:
    """Python files of these folders."""
    return (p for p in files(*folders) if p.suffix == ".py")


def product() -> Iterator[Path]:
    """Modules of what is installed and used: the simulator is beside it, wherever it stands."""
    return (p for p in modules("src") if SIMULATOR not in shown(p))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def shown(path: Path) -> str:
    """`path` as one would say it: from the root of the repository."""
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    """The name under which a module of the package is imported."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
