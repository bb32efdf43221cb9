"""How a session with Postgres is encrypted, and which certificates it trusts: libpq's ssl parameters.

The driver cannot bind a login to its TLS channel (`channel_binding=require`). What that guards against is
a server in between; a verified certificate does so too, so the certificate is verified instead.
See https://www.postgresql.org/docs/current/libpq-ssl.html.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlencode

from pinstripe.errors import Misconfigured

TLS_PARAMETERS = frozenset(
    (
        *("ssl", "sslmode", "requiressl", "sslnegotiation", "sslaccept", "sslsni"),
        *("sslcert", "sslkey", "sslpassword", "sslcertmode", "sslkeylogfile"),
        *("sslrootcert", "sslcrl", "sslcrldir"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version"),
    )
)

SslMode = Literal["disable", "allow", "prefer", "no-verify", "require", "verify-ca", "verify-full"]
_MODES: tuple[SslMode, ...] = get_args(SslMode)
_SYSTEM = "system"
_ALPN = "postgresql"


@dataclass(frozen=True, slots=True)
class Tls:
    """`ssl` and `direct` as `asyncpg.connect` takes them; `dsn` holds the files of modes that may do
    without TLS.
    """

    ssl: ssl.SSLContext | Literal["allow", "prefer", False]
    direct: bool = False
    dsn: str | None = None


class _Context(ssl.SSLContext):
    """Verify the name of a server that is reached by its address, and can keep the name to itself."""

    names: Mapping[str, str] = {}
    shows_name = True

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        name = server_hostname
        if isinstance(name, str):
            name = self.names.get(name, name)
        return super().wrap_bio(
            incoming, outgoing, server_side, name if self.shows_name else None, session
        )


def make_tls(values: Mapping[str, str], names: Mapping[str, str], *, only_sockets: bool) -> Tls:
    """From parameters of a database URL. `names`: host of each address that was given by `hostaddr`.

    Raises Misconfigured, which names the parameter.
    """
    bound = values.get("channel_binding") == "require"
    if only_sockets:
        if bound:
            raise _wrong(
                "channel_binding", "It needs TLS, which sockets of this machine do not have."
            )
        return Tls(False)
    mode = mode_of(values)
    if values.get("sslcertmode") not in (None, "", "disable", "allow"):
        raise _wrong(
            "sslcertmode",
            "The driver cannot tell whether the server asked for a certificate: it is disable or allow.",
        )
    if values.get("sslaccept") not in (None, "", "strict", "accept_invalid_certs"):
        raise _wrong("sslaccept", "Take it out, and say it by sslmode.")
    roots = values.get("sslrootcert", "")
    if bound or values.get("sslaccept") == "strict":
        roots = roots or ("" if _default("root.crt") else _SYSTEM)
        mode = "verify-full"
    if roots == _SYSTEM and mode != "verify-full":
        if "sslmode" in values:
            raise _wrong("sslrootcert", "With sslrootcert=system, sslmode must be verify-full.")
        mode = "verify-full"
    direct = _negotiates_directly(values, mode)
    if mode == "disable":
        return Tls(False)
    if mode in ("allow", "prefer"):
        return Tls("allow" if mode == "allow" else "prefer", dsn=_dsn(values, mode))
    return Tls(_context(values, mode, roots, names), direct)


@contextmanager
def _reading(name: str, file: str) -> Iterator[None]:
    """Raise Misconfigured with the parameter whose file cannot be read or is of another kind."""
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or "it is not what it should be"
        raise _wrong(name, f"{file}: {reason}.") from error


def _wrong(name: str, remedy: str) -> Misconfigured:
    return Misconfigured(f"Of the database URL, {name} cannot be met.", hint=remedy)


def mode_of(values: Mapping[str, str]) -> SslMode:
    """`sslmode`, or what other programs write for it: libpq's own old words, and node-postgres's `ssl`."""
    text = values.get("sslmode", "")
    also = values.get("ssl", "").lower()
    if not text and also:
        text = {"true": "require", "1": "require", "false": "disable", "0": "disable"}.get(
            also, also
        )
    if not text and values.get("requiressl") == "1":
        text = "require"
    for mode in _MODES:
        if mode == (text or "prefer"):
            return mode
    raise _wrong(
        "sslmode" if values.get("sslmode") else "ssl", f"sslmode is one of: {', '.join(_MODES)}."
    )


def _negotiates_directly(values: Mapping[str, str], mode: SslMode) -> bool:
    text = values.get("sslnegotiation", "postgres") or "postgres"
    if text not in ("postgres", "direct"):
        raise _wrong("sslnegotiation", "It is postgres or direct.")
    if text == "direct" and mode in ("disable", "allow", "prefer"):
        raise _wrong(
            "sslnegotiation", "With sslnegotiation=direct, sslmode must be require or more."
        )
    return text == "direct"


def _dsn(values: Mapping[str, str], mode: SslMode) -> str:
    """The driver itself falls back to a session without TLS; it takes files from a URL only."""
    names = (
        "sslcert",
        "sslkey",
        "sslpassword",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
    )
    given = {name: values[name] for name in names if values.get(name)}
    if not Path(given.get("sslcert", "/")).exists():
        del given["sslcert"]  # As libpq, which goes on without it.
    return f"postgresql://?{urlencode({'sslmode': mode} | given)}"


def _context(
    values: Mapping[str, str], mode: SslMode, roots: str, names: Mapping[str, str]
) -> ssl.SSLContext:
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.names = names
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([_ALPN])
    context.minimum_version = _version(values, "ssl_min_protocol_version") or ssl.TLSVersion.TLSv1_2
    highest = _version(values, "ssl_max_protocol_version")
    if highest:
        context.maximum_version = highest
    if mode != "no-verify":
        _trust(context, values, mode, roots)
        context.check_hostname = mode == "verify-full"
    _show_certificate(context, values)
    if values.get("sslsni") == "0":
        if context.check_hostname:
            raise _wrong("sslsni", "The driver verifies the name that it shows: leave sslsni out.")
        context.shows_name = False
    if values.get("sslkeylogfile"):
        with _reading("sslkeylogfile", values["sslkeylogfile"]):
            context.keylog_filename = values["sslkeylogfile"]
    return context


def _trust(context: ssl.SSLContext, values: Mapping[str, str], mode: SslMode, roots: str) -> None:
    """The roots. As in libpq, `require` verifies too where there is a file of them."""
    if roots == _SYSTEM:
        context.load_default_certs()
    else:
        file = roots or _default("root.crt")
        if not file:
            if mode == "require":
                return
            raise _wrong(
                "sslmode", "Name the root certificates: sslrootcert=FILE, or sslrootcert=system."
            )
        with _reading("sslrootcert", file):
            context.load_verify_locations(cafile=file)
    context.verify_mode = ssl.CERT_REQUIRED
    revoked = values.get("sslcrl") or _default("root.crl")
    folder = values.get("sslcrldir") or None
    if revoked or folder:
        with _reading("sslcrl or sslcrldir", revoked or str(folder)):
            context.load_verify_locations(cafile=revoked or None, capath=folder)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _show_certificate(context: ssl.SSLContext, values: Mapping[str, str]) -> None:
    """Our own certificate, for servers that ask for one."""
    certificate = values.get("sslcert") or _default("postgresql.crt")
    if values.get("sslcertmode") == "disable" or not certificate:
        return
    key = values.get("sslkey") or _default("postgresql.key") or None
    with _reading("sslcert or sslkey", f"{certificate}, {key}"):
        context.load_cert_chain(certificate, key, password=lambda: values.get("sslpassword", ""))


def _default(name: str) -> str:
    """The place that libpq has for a file, if there is one; else ""."""
    try:
        path = Path.home() / ".postgresql" / name
        return str(path) if path.exists() else ""
    except (RuntimeError, OSError):
        return ""


def _version(values: Mapping[str, str], name: str) -> ssl.TLSVersion | None:
    text = values.get(name)
    if not text:
        return None
    if text not in ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"):
        raise _wrong(name, "It is one of: TLSv1, TLSv1.1, TLSv1.2, TLSv1.3.")
    return ssl.TLSVersion[text.replace(".", "_")]
