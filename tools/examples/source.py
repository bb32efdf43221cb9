"""The examples themselves: one file of the official package's source archive, read and never kept.

Its placeholders (`cus_xxxxxxxxxxxxx`) and its fake HTTP client are the package's; both are replaced
when an example runs (see `living` and `client`).
"""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

VERSION = "16.1.0"
PATH_VARIABLE = "STRIPE_SDIST"
_FILE = f"stripe-{VERSION}/tests/test_generated_examples.py"
_FAKE = "tests.http_client_mock"


@dataclass(frozen=True)
class Example:
    """One call of the package. `about` is shared by the ways of writing the same call."""

    name: str
    about: str
    call: Callable[[object], None]


def load() -> list[Example]:
    """The blocking examples of the v1 API, in the order of the file."""
    return list(_examples(_text()))


def _text() -> str:
    given = os.environ.get(PATH_VARIABLE, "")
    if given:
        return _member(Path(given))
    with tempfile.TemporaryDirectory(prefix="stripe-sdist-") as directory:
        wanted = ["--no-binary", "stripe", "--no-deps"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *wanted]
        subprocess.run([*command, "--dest", directory, f"stripe=={VERSION}"], check=True)
        return _member(next(Path(directory).glob("stripe-*.tar.gz")))


def _member(archive: Path) -> str:
    with tarfile.open(archive) as files:
        found = files.extractfile(_FILE)
        if found is None:
            raise FileNotFoundError(f"{archive} holds no {_FILE}")
        return io.TextIOWrapper(found, "utf-8").read()


def _examples(text: str) -> Iterator[Example]:
    tree = ast.parse(text)
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ImportFrom) and node.module in (_FAKE, "__future__"))
    ]
    names: dict[str, object] = {"HTTPClientMock": object, "__name__": "generated_examples"}
    exec(compile(tree, _FILE, "exec"), names)
    kind = names["TestGeneratedExamples"]
    assert isinstance(kind, type)
    made = kind()
    for name in _wanted(vars(kind)):
        yield Example(name, _about(name), getattr(made, name))


def _wanted(members: Mapping[str, object]) -> Iterator[str]:
    """Each v1 call in its three blocking ways; a v2 call has only one way and no plain twin."""
    for name in members:
        if name.startswith("test_") and not name.endswith("_async") and _about(name) in members:
            yield name


def _about(name: str) -> str:
    return name.removesuffix("_non_namespaced").removesuffix("_service")
