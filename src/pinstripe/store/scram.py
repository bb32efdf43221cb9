"""What Postgres keeps of a password, made here, so that the password itself never reaches the server.

A statement with a password in it may end in the server's log; a verifier there helps nobody.
RFC 5802 and 7677; the form is that of `pg_authid.rolpassword`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode

ITERATIONS = 4096
"""Postgres's own default. The passwords here are random and long: more would only slow logins down."""
_SALT_BYTES = 16


def new_password() -> str:
    """192 random bits, in letters that need no quoting in a URL."""
    return secrets.token_urlsafe(24)


def verifier(password: str, *, salt: bytes | None = None) -> str:
    """The SCRAM-SHA-256 verifier of an ASCII password."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return (
        f"SCRAM-SHA-256${ITERATIONS}:{b64encode(salt).decode()}"
        f"${b64encode(stored).decode()}:{b64encode(server).decode()}"
    )
