"""Our own directory is for its owner alone, whatever the umask; those of others keep their mode."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinstripe.encryption import Encryptor, make_private


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_private(tmp_path: Path) -> None:
    make_private(tmp_path / "new" / ".pinstripe" / "demo")
    for name in ("new/.pinstripe", "new/.pinstripe/demo"):
        assert mode(tmp_path / name) == 0o700
    assert mode(tmp_path / "new") == 0o777


def test_an_open_one_of_an_older_version_is_closed_and_others_stay(tmp_path: Path) -> None:
    for name in ("shared", "shared/.pinstripe"):
        (tmp_path / name).mkdir(mode=0o755)
    make_private(tmp_path / "shared" / ".pinstripe")
    make_private(tmp_path / "shared")
    assert mode(tmp_path / "shared" / ".pinstripe") == 0o700
    assert mode(tmp_path / "shared") == 0o755


def test_the_file_of_keys_stands_in_a_private_directory(tmp_path: Path) -> None:
    Encryptor((), tmp_path / ".pinstripe" / "secret.key").seal("x", bound={})
    assert mode(tmp_path / ".pinstripe") == 0o700
    assert mode(tmp_path / ".pinstripe" / "secret.key") == 0o600
