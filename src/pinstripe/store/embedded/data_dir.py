"""The directory that an embedded Postgres lives in: its paths, its locks, its owner.

    DATA_DIR/owner.lock      held (flock) by the Pinstripe process that owns the server
    DATA_DIR/server.lock     held by the server's own processes, the last backend included
    DATA_DIR/server.json     where the server listens (0600; the TCP password is in it)
    DATA_DIR/password        the password for TCP (0600), kept over restarts
    DATA_DIR/postgres.log    what the server says; bounded
    DATA_DIR/run/            the socket (0700)
    DATA_DIR/cluster/        Postgres's own data directory (0700)

The kernel drops a flock when its last holder dies, so both locks are right even after `kill -9`, which a
pid in a file is not. Only DATA_DIR and what is in it is ever given
another owner or mode; of those above it only one that is named `.pinstripe` (0700).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pinstripe.encryption import make_private
from pinstripe.errors import Misconfigured, Unwritable

NOBODY = 65534
"""Postgres refuses to run as root. This uid needs no useradd: it is `nobody` on Linux."""

_SOCKET_DIR_BYTES = 85
"""A socket's path has at most 103 bytes (macOS) or 107 (Linux); `/.s.PGSQL.65535` takes 15."""


@dataclass(frozen=True)
class OsAccount:
    """The user that the server runs as, where that is not us."""

    uid: int
    gid: int


class ServerState(msgspec.Struct, frozen=True):
    """What `server.json` says of the running server, for a second Pinstripe process."""

    url: str
    tcp_url: str | None
    version: str
    socket_dir: str

    def __repr__(self) -> str:
        """Without the password in `tcp_url`."""
        return f"ServerState(version={self.version!r}, socket_dir={self.socket_dir!r})"


class Home:
    """The paths in one data directory, and who owns what in it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self.cluster = self.data_dir / "cluster"
        self.owner_lock = self.data_dir / "owner.lock"
        self.server_lock = self.data_dir / "server.lock"
        self.state_file = self.data_dir / "server.json"
        self.password_file = self.data_dir / "password"
        self.log_file = self.data_dir / "postgres.log"

    def prepare(self) -> None:
        """Create the directory, or check that it is one of ours. Raises Misconfigured."""
        try:
            make_private(self.data_dir.parent)
            self.data_dir.mkdir(exist_ok=True)
            # "lost+found": a volume of its own has one, and is as good as empty.
            names = {path.name for path in self.data_dir.iterdir()} - {"lost+found"}
        except FileExistsError as error:
            raise Misconfigured(
                f"{self.data_dir} is not a directory.", hint="Choose another data directory."
            ) from error
        except OSError as error:
            raise io_error(error, self.data_dir) from error
        if "PG_VERSION" in names:
            raise Misconfigured(
                f"{self.data_dir} is the data directory of another Postgres server.",
                hint="Choose an empty directory, or start that server and set DATABASE_URL.",
            )
        if names and self.owner_lock.name not in names:
            raise Misconfigured(
                f"{self.data_dir} is not empty and was not made by Pinstripe.",
                hint="Choose an empty directory or a new one.",
            )
        try:
            # Root's server runs as another uid, which must pass through here to its own directory.
            # 0711: it can pass, but neither list nor replace what is here.
            self.data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
        except OSError as error:
            raise io_error(error, self.data_dir) from error

    def account(self) -> OsAccount | None:
        """The user to run the server as; None: as ourselves.

        A cluster that a normal user made keeps its owner when root starts it, so that the user can
        start it again.
        """
        if os.geteuid() != 0:
            return None
        if self.cluster.is_symlink():
            raise Misconfigured(
                f"{self.cluster} is a symbolic link, which root does not follow.",
                hint="Choose the directory that it leads to as data directory.",
            )
        if self.cluster.exists():
            owner = self.cluster.stat()
            if owner.st_uid != 0:
                return OsAccount(owner.st_uid, owner.st_gid)
        return OsAccount(NOBODY, NOBODY)

    def socket_dir(self, account: OsAccount | None) -> Path:
        """A directory of mode 0700, short enough for a socket, that the server's user owns."""
        path = self.data_dir / "run"
        # A comma separates hosts in a Postgres URL, and no quoting helps.
        if len(os.fsencode(path)) > _SOCKET_DIR_BYTES or "," in str(path):
            parent = tempfile.gettempdir()
            if len(os.fsencode(parent)) > _SOCKET_DIR_BYTES - 20:
                parent = "/tmp"  # noqa: S108 (mkdtemp makes a private directory in it)
            path = Path(tempfile.mkdtemp(prefix="pinstripe-", dir=parent))
        path.mkdir(exist_ok=True)
        path.chmod(0o700)
        give(path, account)
        return path

    def take_lock(self, path: Path) -> int | None:
        """A descriptor that holds the lock, or None while another process holds it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise io_error(error, path) from error
        try:
            self._own_like_data_dir(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise io_error(error, path) from error
        return descriptor

    def is_owned(self) -> bool:
        """Whether a live Pinstripe process owns this directory."""
        if not self.owner_lock.exists():
            return False
        descriptor = self.take_lock(self.owner_lock)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def read_state(self) -> ServerState | None:
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=ServerState)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise io_error(error, self.state_file) from error
        except msgspec.DecodeError:  # written by another release; the owner writes it again
            return None

    def write_state(self, state: ServerState) -> None:
        self.write_private(self.state_file, msgspec.json.encode(state))

    def write_private(self, path: Path, content: bytes) -> None:
        """Replaces `path` in one step, mode 0600; readers see the old content or the new."""
        try:
            descriptor, name = tempfile.mkstemp(dir=self.data_dir, prefix=".new-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                self._own_like_data_dir(file.fileno())
            Path(name).replace(path)
        except OSError as error:
            raise io_error(error, path) from error

    def remove_leftovers(self) -> None:
        """What an earlier owner left when it was killed: half a cluster, a private socket dir."""
        for path in self.data_dir.glob("cluster.new-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.data_dir.glob(".new-*"):
            path.unlink(missing_ok=True)
        state = self.read_state()
        if state is not None:
            self.forget(Path(state.socket_dir))

    def forget(self, socket_dir: Path) -> None:
        """Takes back the word that a server runs here."""
        self.state_file.unlink(missing_ok=True)
        if socket_dir.parent != self.data_dir and socket_dir.name.startswith("pinstripe-"):
            shutil.rmtree(socket_dir, ignore_errors=True)

    def _own_like_data_dir(self, descriptor: int) -> None:
        """Root leaves files behind that the directory's owner can use again later."""
        if os.geteuid() == 0:
            owner = self.data_dir.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def give(path: Path, account: OsAccount | None) -> None:
    """Makes `path`, which must be ours, the server's."""
    if account is None:
        return
    try:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    except PermissionError as error:
        raise Misconfigured(
            f"Root may not give {path} to uid {account.uid}: this container has no CAP_CHOWN.",
            hint="Run Pinstripe as a normal user, or set DATABASE_URL.",
        ) from error


def io_error(error: OSError, path: Path) -> Misconfigured | Unwritable:
    """Our error for trouble with a file in the data directory."""
    if isinstance(error, PermissionError):
        return Misconfigured(
            f"{path} does not belong to the user with uid {os.geteuid()}.",
            hint="Run Pinstripe as the user who made it, or choose another data directory.",
        )
    return Unwritable(
        f"Cannot write {path}: {error.strerror}.",
        hint="Make room or choose another data directory.",
    )
