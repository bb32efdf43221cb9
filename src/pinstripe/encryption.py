"""Encrypts the Stripe keys that Postgres stores.

    encryptor = Encryptor(config.secret_key, config.data_dir / "secret.key")
    sealed = encryptor.seal("sk_test_...", bound={"sync": "shop", "stripe_url": "https://..."})
    encryptor.open(sealed, bound={...}, what="the key of the sync shop")

AES-256-GCM of the `cryptography` package. `bound` is its associated data: a ciphertext opens only with the
same values, so one that is copied to another row, or whose row gets another address, opens no more. The
first key encrypts, all of them decrypt, so a key can be replaced while both are known. Keys come from the
settings, else from a file that only its owner may read, made when something is sealed for the first time.
The database alone reveals no secret; database and key reveal all.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pinstripe.config.config import secret_key
from pinstripe.errors import Misconfigured, Unwritable

FILE = "secret.key"
Bound = Mapping[str, str | bool | None]
"""What a ciphertext belongs to: names and values of its row."""

_BOUND = b"p1."
"""Before what is bound. Versions before it wrote Fernet tokens, which begin with `gAAAA`."""
_NONCE_BYTES = 12
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_AGAIN = (
    "store what is lost again: `pinstripe syncs change ID --key`, with PINSTRIPE_WEBHOOK_SECRET set if the "
    "sync has webhook secrets; remove a platform and add it again."
)

OWN_DIRECTORY = ".pinstripe"
"""The default directory. It is private whatever the umask."""


def make_private(directory: Path) -> None:
    """Creates a directory and its missing parents; `.pinstripe` and what is below it with mode 0700.

    An existing directory keeps its mode, except a `.pinstripe` of this user: older versions created it
    readable for others. Raises OSError.
    """
    missing = [directory]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        each.mkdir(mode=0o700 if OWN_DIRECTORY in each.parts else 0o777, exist_ok=True)
    for each in (directory, *directory.parents):
        if each.name == OWN_DIRECTORY and each.stat().st_uid == os.geteuid():
            each.chmod(0o700)


class Encryptor:
    """Encrypts (`seal`) and decrypts (`open`) texts. Reads the file of keys on first use."""

    def __init__(self, keys: Sequence[str], path: Path) -> None:
        """`keys`: from the settings; `path`: the file that holds the keys if the settings have none."""
        self._given = tuple(keys)
        self._path = path
        self._known: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"Encryptor({'settings' if self._given else self._path})"

    @property
    def in_file(self) -> bool:
        """Whether the keys come from the file."""
        return not self._given

    def seal(self, text: str, *, bound: Bound) -> bytes:
        """`text`, encrypted for the row that `bound` names. Makes the file of keys if there is none."""
        nonce = os.urandom(_NONCE_BYTES)
        first = self._keys(make=True)[0]
        return _BOUND + nonce + _cipher(first).encrypt(nonce, text.encode(), _associated(bound))

    def open(self, sealed: bytes, *, bound: Bound, what: str) -> str:
        """The text again. Raises Misconfigured, naming `what` and the remedy, where it does not open."""
        found = self._opened(sealed, bound)
        if found is None and self.in_file:
            # Another process may have put a new key into the file.
            self._known = ()
            found = self._opened(sealed, bound)
        if found is None:
            raise Misconfigured(
                f"{what[0].upper()}{what[1:]} does not open: it was encrypted with another key than the "
                f"one in {self._source()}, or for another row of the database.",
                hint="Bring that key back, after the present one in PINSTRIPE_SECRET_KEY (separated by a "
                f"comma). Or {_AGAIN}",
            )
        return found

    def is_bound(self, sealed: bytes) -> bool:
        """Whether it opens for one row only. What earlier versions stored does not: see `bind`."""
        return sealed.startswith(_BOUND)

    def bind(self, sealed: bytes, *, bound: Bound, what: str) -> bytes:
        """The same text under the first key, for that row; also of a token that was bound to none."""
        if self.is_bound(sealed):
            return self.seal(self.open(sealed, bound=bound, what=what), bound=bound)
        try:
            text = MultiFernet([Fernet(key) for key in self._keys(make=False)]).decrypt(sealed)
        except InvalidToken:
            raise Misconfigured(
                f"{what[0].upper()}{what[1:]} was encrypted with another key than the one in "
                f"{self._source()}.",
                hint=_AGAIN[0].upper() + _AGAIN[1:],
            ) from None
        return self.seal(text.decode(), bound=bound)

    def add_to_file(self) -> None:
        """Put a new key first in the file. From now on it encrypts."""
        self._write([_new_key(), *self._read()])

    def keep_first_in_file(self) -> None:
        """Removes all keys from the file but the newest."""
        self._write(self._read()[:1])

    def _opened(self, sealed: bytes, bound: Bound) -> str | None:
        keys = self._keys(make=False)
        if not self.is_bound(sealed):
            return None
        nonce, rest = sealed[3 : 3 + _NONCE_BYTES], sealed[3 + _NONCE_BYTES :]
        for key in keys:
            try:
                return _cipher(key).decrypt(nonce, rest, _associated(bound)).decode()
            except InvalidTag:
                continue
        return None

    def _source(self) -> str:
        return "PINSTRIPE_SECRET_KEY" if self._given else str(self._path)

    def _keys(self, *, make: bool) -> Sequence[str]:
        if not self._known:
            self._known = list(self._given) or self._read()
            if not self._known and make:
                self._known = self._made()
            if not self._known:
                raise Misconfigured(
                    f"The key that stored secrets were encrypted with is gone: there is no {self._path} "
                    "and no PINSTRIPE_SECRET_KEY.",
                    hint=f"Bring it back, or name its directory with --data-dir. Or {_AGAIN}",
                )
        return self._known

    def _read(self) -> list[str]:
        """The keys of the file; none if it is not there."""
        try:
            with self._path.open(encoding="ascii") as file:
                mode = os.fstat(file.fileno()).st_mode
                if mode & _OTHERS:
                    raise Misconfigured(
                        f"Others may read {self._path}, which encrypts the keys of stored syncs.",
                        hint=f"Take that right away: chmod 600 {self._path}",
                    )
                words = file.read().split()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(
                f"{self._path} cannot be read: {error}.",
                hint="It must be a file of base64 text that belongs to the user of this process.",
            ) from error
        return [secret_key(word, str(self._path)) for word in words]

    def _made(self) -> list[str]:
        """Creates the file with a first key, unless another process just did; returns the keys in it."""
        try:
            make_private(self._path.parent)
            temporary = self._temporary([_new_key()])
            try:
                os.link(temporary, self._path)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        except OSError as error:
            raise self._unwritable(error) from error
        return self._read()

    def _write(self, keys: list[str]) -> None:
        try:
            self._temporary(keys).replace(self._path)
        except OSError as error:
            raise self._unwritable(error) from error
        self._known = ()

    def _temporary(self, keys: list[str]) -> Path:
        path = self._path.with_name(f"{self._path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(keys) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return path

    def _unwritable(self, error: OSError) -> Unwritable:
        return Unwritable(
            f"Cannot write {self._path}: {error.strerror}.",
            hint="Make room, choose another directory with --data-dir, or set PINSTRIPE_SECRET_KEY.",
        )


def hash_key(given: str | None, directory: Path) -> bytes:
    """The key of the hashes of personal data: `given`, else that of `hash.key`, made on first use.

    A file of its own: to replace `secret.key` must not change what is stored.
    """
    key = Encryptor((given,) if given else (), directory / "hash.key")._keys(make=True)[0]
    derive = HKDF(SHA256(), 32, salt=None, info=b"pinstripe personal data 1")
    return derive.derive(base64.urlsafe_b64decode(key))


def _new_key() -> str:
    return Fernet.generate_key().decode()


def _cipher(key: str) -> AESGCM:
    """Not under the key itself: versions before used its halves for Fernet."""
    derive = HKDF(SHA256(), 32, salt=None, info=b"pinstripe stored secrets 1")
    return AESGCM(derive.derive(base64.urlsafe_b64decode(key)))


def _associated(bound: Bound) -> bytes:
    return json.dumps(dict(bound), sort_keys=True).encode()
