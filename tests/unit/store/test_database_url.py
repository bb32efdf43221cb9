"""Every parameter of a database URL is used, has no effect for a reason, or is refused by its name."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pinstripe.config.config import database_url
from pinstripe.errors import Misconfigured
from pinstripe.store.database_url import (
    DatabaseTarget,
    read_url,
    split_url,
    url_for_libpq,
    url_with_login,
)
from pinstripe.store.pool import place_of

BASE = "postgresql://me:secret@db.example.com:6432/billing"

# https://www.postgresql.org/docs/18/libpq-connect.html#LIBPQ-PARAMKEYWORDS, in its order.
LIBPQ = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "require_auth",
    "channel_binding",
    "connect_timeout",
    "client_encoding",
    "options",
    "application_name",
    "fallback_application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "replication",
    "gssencmode",
    "sslmode",
    "requiressl",
    "sslnegotiation",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslkeylogfile",
    "sslpassword",
    "sslcertmode",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "requirepeer",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "min_protocol_version",
    "max_protocol_version",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "scram_client_key",
    "scram_server_key",
    "service",
    "target_session_attrs",
    "load_balance_hosts",
    "oauth_issuer",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_scope",
]


def read(query: str = "", **environ: str) -> DatabaseTarget:
    return read_url(f"{BASE}?{query}", environ)


@pytest.fixture(autouse=True)
def no_files_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No certificate and no service of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("name", LIBPQ)
def test_each_parameter_of_libpq_is_known(name: str) -> None:
    """Used, or refused for its value: none is unknown."""
    said = ""
    try:
        read(f"{name}=x")
    except Misconfigured as error:
        said = str(error)
    assert not said or name in said
    assert "nor Pinstripe knows" not in said


def test_user_password_host_and_database_come_from_every_place() -> None:
    target = read()
    assert (target.hosts, target.ports) == (["db.example.com"], [6432])
    assert (target.user, target.password, target.database) == ("me", "secret", "billing")
    query = read_url("postgresql://?host=%2Frun%2Fpg&port=1&dbname=d&user=u&password=p%26w", {})
    assert (query.hosts, query.ports, query.database) == (["/run/pg"], [1], "d")
    assert (query.user, query.password) == ("u", "p&w")
    assert read_url("postgres://u@/d", {}).hosts is None


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ("p%40ss", "p@ss"),
        ("p%2Fs%23s%3Fs", "p/s#s?s"),
        ("p#ss", "p#ss"),
        ("p?ss", "p?ss"),
        ("p@ss", "p@ss"),
        ("p:ss", "p:ss"),
        ("p[ss", "p[ss"),
        ("p+ss", "p+ss"),
        ("p%2Bss", "p+ss"),
        ("p%C3%A9", "pé"),
        ("p&s=s", "p&s=s"),
        ("", ""),
    ],
)
def test_a_password_may_hold_any_character(written: str, password: str) -> None:
    target = read_url(f"postgresql://me:{written}@h:1/d?sslmode=prefer", {})
    assert (target.user, target.password or "", target.hosts) == ("me", password, ["h"])
    assert target.database == "d"
    url = url_with_login("postgresql://h:1/d", "me", password)
    assert read_url(url, {}).password == (password or None)


def test_a_plus_in_a_parameter_is_a_plus() -> None:
    assert read("password=a+b").password == "a+b"


def test_many_hosts_with_one_port_or_one_for_each() -> None:
    several = read_url("postgresql://a:1,[::1]:2,%2Frun%2Fpg:3/d", {})
    assert (several.hosts, several.ports) == (["a", "::1", "/run/pg"], [1, 2, 3])
    assert read_url("postgresql://a,b/d?port=7", {}).ports == [7, 7]
    assert read_url("postgresql://a,b:9/d", {}).ports == [5432, 9]
    with pytest.raises(Misconfigured, match="port"):
        read_url("postgresql://?host=a,b&port=1,2,3", {})
    shuffled = {
        tuple(read_url("postgresql://a,b,c/d?load_balance_hosts=random", {}).hosts or ())
        for _ in range(200)
    }
    assert len(shuffled) == 6


def test_an_address_is_connected_to_and_the_name_verified() -> None:
    target = read("hostaddr=192.0.2.7&sslmode=verify-full&sslrootcert=system")
    assert target.hosts == ["192.0.2.7"]
    context = target.tls.ssl
    assert isinstance(context, ssl.SSLContext)
    made = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="192.0.2.7")
    assert made.server_hostname == "db.example.com"


@pytest.mark.parametrize(
    ("query", "kind", "verify", "name"),
    [
        ("sslmode=disable", False, None, None),
        ("ssl=false", False, None, None),
        ("sslmode=allow", "allow", None, None),
        ("", "prefer", None, None),
        ("sslmode=prefer", "prefer", None, None),
        ("sslaccept=accept_invalid_certs", "prefer", None, None),
        ("sslmode=require", ssl.SSLContext, ssl.CERT_NONE, False),
        ("requiressl=1", ssl.SSLContext, ssl.CERT_NONE, False),
        ("ssl=true", ssl.SSLContext, ssl.CERT_NONE, False),
        ("ssl=require", ssl.SSLContext, ssl.CERT_NONE, False),
        ("sslmode=no-verify", ssl.SSLContext, ssl.CERT_NONE, False),
        ("ssl=no-verify&uselibpqcompat=true", ssl.SSLContext, ssl.CERT_NONE, False),
        ("sslrootcert=system", ssl.SSLContext, ssl.CERT_REQUIRED, True),
        ("sslmode=verify-full&sslrootcert=system", ssl.SSLContext, ssl.CERT_REQUIRED, True),
        ("sslmode=require&channel_binding=require", ssl.SSLContext, ssl.CERT_REQUIRED, True),
        ("channel_binding=require", ssl.SSLContext, ssl.CERT_REQUIRED, True),
        ("sslaccept=strict", ssl.SSLContext, ssl.CERT_REQUIRED, True),
    ],
)
def test_encryption_is_never_weaker_than_asked_for(
    query: str, kind: object, verify: ssl.VerifyMode | None, name: bool | None
) -> None:
    tls = read(query).tls.ssl
    if isinstance(tls, ssl.SSLContext):
        assert kind is ssl.SSLContext
        assert (tls.verify_mode, tls.check_hostname) == (verify, name)
        assert tls.minimum_version == ssl.TLSVersion.TLSv1_2
    else:
        assert tls == kind


@pytest.mark.parametrize(
    ("query", "name", "remedy"),
    [
        ("require_auth=scram-sha-256", "require_auth", "verify-full"),
        ("gssencmode=require", "gssencmode", "TLS"),
        ("gssdelegation=1", "gssdelegation", "delegate"),
        ("replication=database", "replication", "ordinary"),
        ("min_protocol_version=3.2", "min_protocol_version", "3.0"),
        ("scram_client_key=x", "scram_client_key", "password"),
        ("sslidentity=x.p12", "sslidentity", "sslcert"),
        ("sslcertmode=require", "sslcertmode", "allow"),
        ("sslmode=verify-full", "sslmode", "sslrootcert"),
        ("sslmode=verify-ca", "sslmode", "sslrootcert"),
        ("sslmode=require&sslrootcert=system", "sslrootcert", "verify-full"),
        ("sslmode=require&sslrootcert=/no/such.crt", "ssl", "/no/such.crt"),
        ("sslmode=perhaps", "sslmode", "verify-full"),
        ("ssl=perhaps", "ssl", "verify-full"),
        ("sslaccept=perhaps", "sslaccept", "sslmode"),
        ("sslnegotiation=direct", "sslnegotiation", "require"),
        ("sslnegotiation=perhaps&sslmode=require", "sslnegotiation", "direct"),
        ("sslmode=require&ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version", "TLSv1.2"),
        ("sslsni=0&sslmode=verify-full&sslrootcert=system", "sslsni", "leave"),
        ("channel_binding=perhaps", "channel_binding", "require"),
        ("target_session_attrs=perhaps", "target_session_attrs", "read-write"),
        ("load_balance_hosts=perhaps", "load_balance_hosts", "random"),
        ("gsslib=perhaps", "gsslib", "gssapi"),
        ("connect_timeout=soon", "connect_timeout", "Correct"),
        ("keepalives_idle=soon", "keepalives_idle", "Correct"),
        ("port=99999", "port", "@"),
        ("service=nowhere", "nowhere", "PGSERVICEFILE"),
        ("search_path=x", "search_path", "options=-c%20"),
        ("statement_timeout=5", "statement_timeout", "options=-c%20"),
        ("sslfactory=org.postgresql.ssl.NonValidatingFactory", "sslfactory", "Take it out"),
    ],
)
def test_what_cannot_be_met_is_refused_by_name(query: str, name: str, remedy: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        read(query)
    assert name in caught.value.message
    assert remedy in caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_certificate_that_is_not_there_is_not_shown_where_tls_may_be_done_without() -> None:
    assert "nowhere.crt" not in (read("sslcert=/nowhere.crt").tls.dsn or "")
    assert "here.crt" not in (read("sslcert=/no/here.crt&sslmode=allow").tls.dsn or "")
    assert "%2Fetc%2Fhosts" in (read("sslcert=/etc/hosts").tls.dsn or "")


def test_binding_a_channel_on_a_socket_is_refused() -> None:
    with pytest.raises(Misconfigured, match="channel_binding"):
        read_url("postgresql://me@/d?host=/run/pg&channel_binding=require", {})


@pytest.mark.parametrize(
    "query",
    [
        "application_name=x&fallback_application_name=y",
        "client_encoding=LATIN1",
        "gssencmode=prefer&gssdelegation=0&sslcompression=0&replication=false",
        "min_protocol_version=3.0&max_protocol_version=latest",
        "oauth_scope=openid",
        "schema=public&pgbouncer=true&connection_limit=1&pool_timeout=0&socket_timeout=5",
        "statement_cache_size=0",
        "uselibpqcompat=true&encoding=utf8",
        "supa=base-pooler.x&workaround=supabase-pooler.vercel",
        "prepared_statement_cache_size=0&pool_max_conns=4&default_query_exec_mode=exec",
    ],
)
def test_what_changes_nothing_here_is_taken(query: str) -> None:
    assert read(query).settings == read().settings


def test_options_reach_the_server_as_they_are() -> None:
    """Neon's endpoint is one."""
    assert read("options=endpoint%3Dep-cool-1").settings == {"options": "endpoint=ep-cool-1"}


def test_time_and_keepalives_are_as_libpq_reads_them() -> None:
    assert read().timeout_s is None
    assert read("connect_timeout=10").timeout_s == 10
    assert read("connect_timeout=1").timeout_s == 2
    assert read("connect_timeout=0").timeout_s is None
    assert read_url("postgresql://a,b/d?connect_timeout=5", {}).timeout_s == 5
    alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert read().socket_options == (alive,)
    assert read("keepalives=0").socket_options == ((*alive[:2], 0),)
    options = read("keepalives_idle=30&tcp_user_timeout=9000").socket_options
    assert (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30) in options
    assert (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000) in options


def test_the_environment_fills_what_the_url_leaves_out() -> None:
    environ = {
        "PGHOST": "other",
        "PGPORT": "7",
        "PGUSER": "u",
        "PGPASSWORD": "p",
        "PGDATABASE": "d",
        "PGSSLMODE": "disable",
        "PGCONNECT_TIMEOUT": "9",
        "PGOPTIONS": "-c geqo=off",
        "PGTARGETSESSIONATTRS": "read-write",
    }
    target = read_url("postgresql://", environ)
    assert (target.hosts, target.ports, target.user) == (["other"], [7], "u")
    assert (target.password, target.database, target.tls.ssl) == ("p", "d", False)
    assert (target.timeout_s, target.target_session_attrs) == (9, "read-write")
    assert target.settings == {"options": "-c geqo=off"}
    assert read("sslmode=prefer", **environ).tls.ssl == "prefer"
    assert read("", **environ).hosts == ["db.example.com"]
    with pytest.raises(Misconfigured, match="PGREQUIREAUTH"):
        read("", PGREQUIREAUTH="scram-sha-256")


def test_a_service_stands_between_url_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "services"
    file.write_text(
        "# ours\n[prod]\nhost=served\nport=99\nuser=s\npassword=50%off\nsslmode=disable\n"
    )
    environ = {"PGSERVICEFILE": str(file), "PGUSER": "u", "PGDATABASE": "d"}
    target = read_url("postgresql://?service=prod&port=1", environ)
    assert (target.hosts, target.ports, target.user) == (["served"], [1], "s")
    assert (target.password, target.database) == ("50%off", "d")
    assert read_url("postgresql://", environ | {"PGSERVICE": "prod"}).hosts == ["served"]
    file.write_text("[prod]\nrequire_auth=scram-sha-256\n")
    with pytest.raises(Misconfigured, match="require_auth of the service prod"):
        read_url("postgresql://?service=prod", environ)


def test_lines_of_a_service_may_be_indented_in_any_way(tmp_path: Path) -> None:
    file = tmp_path / "services"
    file.write_text("[prod]\nhost=served\n  port=99\n\tuser=s\n")
    target = read_url("postgresql://?service=prod", {"PGSERVICEFILE": str(file)})
    assert (target.hosts, target.ports, target.user) == (["served"], [99], "s")


@pytest.mark.parametrize(
    ("where", "password"),
    [
        ("me@db.example.com:6432/billing", r"a:b\c"),
        ("me@192.0.2.7:6432/billing?hostaddr=192.0.2.7&host=db.example.com", r"a:b\c"),
        ("me@[::1]:1/d", "of IPv6 "),
        ("o%3Addly@h/d", "of a colon"),
        ("me@/d?host=/run/pg&port=7", "of a socket"),
        ("me@nowhere,served:8/d", "of the second"),
        ("me@unlisted/d", None),
        ("me:given@db.example.com:6432/billing", "given"),
    ],
)
def test_the_password_file_is_read_as_libpq_reads_it(
    where: str, password: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "passwords"
    file.write_text(
        "# ours\n\nshort:line\n"
        "db.example.com:6432:billing:me:a:b\\\\c\n"
        "\\:\\:1:*:*:me:of IPv6 \n"
        "h:*:d:o\\:ddly:of a colon\n"
        "localhost:7:d:me:of a socket\n"
        "served:8:d:*:of the second\r\n"
    )
    file.chmod(0o600)
    assert read_url(f"postgresql://{where}", {"PGPASSFILE": str(file)}).password == password
    file.chmod(0o640)  # libpq does not read it either.
    own = "given" if password == "given" else None
    assert read_url(f"postgresql://{where}", {"PGPASSFILE": str(file)}).password == own


@pytest.mark.parametrize(
    ("url", "written"),
    [
        (f"{BASE}?pgbouncer=true&connection_limit=1&schema=public&supa=x", BASE),
        ("postgresql://me:p@ss#1@h/d", "postgresql://me:p%40ss%231@h/d"),
        (f"{BASE}?sslmode=no-verify", f"{BASE}?sslmode=require"),
        (f"{BASE}?ssl=true", f"{BASE}?sslmode=require"),
        (f"{BASE}?sslaccept=strict", f"{BASE}?sslrootcert=system&sslmode=verify-full"),
        (f"{BASE}?sslaccept=accept_invalid_certs", BASE),
        (
            "postgresql://?host=%2Frun%2Fpg&user=u&password=p%26w&dbname=d",
            "postgresql:///?host=/run/pg&user=u&password=p%26w&dbname=d",
        ),
        ("postgresql://u@h/?database=d", "postgresql://u@h/?dbname=d"),
        (f"{BASE}?options=-c%20geqo%3Doff&connect_timeout=3", None),
    ],
)
def test_libpq_itself_gets_what_it_knows(url: str, written: str | None) -> None:
    assert url_for_libpq(url) == (written or url)
    assert conninfo_to_dict(url_for_libpq(url))


def test_an_address_for_others_holds_no_secret_of_ours() -> None:
    url = url_with_login(f"{BASE}?sslcert=c&sslkey=k&sslpassword=hidden", "reader", "theirs")
    assert url == "postgresql://reader:theirs@db.example.com:6432/billing?sslcert=c&sslkey=k"


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("postgres://u:p@h/d", "postgres://u:p@h/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql+psycopg2://u:p@h/d?sslmode=require", "postgresql://u:p@h/d?sslmode=require"),
        ("postgres+psycopg://h/d", "postgres://h/d"),
        ("host=h port=7 dbname=d user=u password=p", "postgresql://?host=h&port=7&dbname=d&user=u&password=p"),
        (r"host = h password = 'a\' b\\'", "postgresql://?host=h&password=a%27%20b%5C"),
        ("dbname=d", "postgresql://?dbname=d"),
    ],
)  # fmt: skip
def test_other_spellings_become_a_url(written: str, url: str) -> None:
    assert database_url(written, "DATABASE_URL") == url
    assert read_url(url, {}).database in ("d", None)


@pytest.mark.parametrize(
    "written",
    [
        "mysql://u:hunter22@h/d",
        "prisma+postgres://accelerate.example?api_key=hunter22",
        "jdbc:postgresql://h/d?password=hunter22",
        "host=h password='hunter22",
        "hunter22",
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(written: str) -> None:
    with pytest.raises(Misconfigured, match="DATABASE_URL") as caught:
        database_url(written, "DATABASE_URL")
    assert "hunter22" not in str(caught.value)
    assert "postgresql://" in caught.value.hint


def test_a_place_is_shown_without_login() -> None:
    assert place_of("postgresql://u:p@ss#1@h:1/d?password=x") == "h:1/d"
    assert place_of("postgresql://?host=/run/pg&dbname=d&password=x") == "/run/pg/d"
    for password in ("hunter/22", "5/hunter", "p@h/unter", "h/unter?2", "p@h?unter"):
        assert place_of(f"postgresql://u:{password}@h:1/d?sslmode=require") == "h:1/d"
    assert "secret" not in repr(split_url(BASE))
    assert "secret" not in repr(read())


def test_a_url_for_others_has_libpqs_parameters_only() -> None:
    url = url_with_login(f"{BASE}?sslmode=require&pgbouncer=true&user=x&schema=s", "r", "p w")
    assert url == "postgresql://r:p%20w@db.example.com:6432/billing?sslmode=require"
