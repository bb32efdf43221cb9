"""Only Stripe's hosts are reached, whatever the path; and what is reached gets the path as it came."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from pinstripe.gateway.proxy.upstream import (
    API,
    STRIPE,
    RequestRejected,
    hosts_at,
    is_for_proxy,
    target_of,
)

_BYTES = st.one_of(
    st.binary(max_size=60),
    st.text(st.sampled_from([*"/.%2eEfF5c\\@:;?#&= v1pi", "é"]), max_size=40).map(str.encode),
)
_STARTS = st.sampled_from(
    [b"", b"/", b"//", b"/v1/", b"/v2/", *(f"/{host}".encode() for host in STRIPE)]
)


@given(_STARTS, _BYTES, _BYTES)
def test_a_target_is_on_one_of_stripes_hosts_with_the_path_as_it_came(
    start: bytes, rest: bytes, query: bytes
) -> None:
    path = start + rest
    try:
        found = target_of(path, query, STRIPE)
    except RequestRejected:
        return
    url = yarl.URL(found.url, encoded=True)
    assert f"https://{url.host}" in STRIPE.values()
    assert url.user is None
    assert url.port == 443
    assert url.fragment == ""
    assert path.endswith(found.path.encode())
    assert url.raw_path == found.path
    assert found.query.encode() == query
    assert not {".", ".."} & set(unquote(unquote(found.path)).split("/"))
    assert is_for_proxy(path.decode("latin-1"))


@pytest.mark.parametrize(
    ("path", "host", "rest"),
    [
        (b"/v1/customers", API, "/v1/customers"),
        (b"/v2/core/accounts", API, "/v2/core/accounts"),
        (b"/api.stripe.com/v1/plans/a%2Fb%20c", API, "/v1/plans/a%2Fb%20c"),
        (b"/files.stripe.com/v1/files", "files.stripe.com", "/v1/files"),
        (b"/v1/products/v1.5", API, "/v1/products/v1.5"),
    ],
)
def test_paths_lead_where_they_say(path: bytes, host: str, rest: str) -> None:
    found = target_of(path, b"", STRIPE)
    assert (found.host, found.path) == (host, rest)


@pytest.mark.parametrize(
    "path",
    [
        b"/evil.example/v1",
        b"/api.stripe.com.evil.example/",
        b"/API.STRIPE.COM/v1",
        b"/api.stripe.com:80/v1",
        b"/api.stripe.com@evil.example/v1",
        b"//api.stripe.com/v1",
        b"/api.stripe.com/../v1",
        b"/v1/%2e%2e/%2e%2e",
        b"/v1/..%5c..",
        b"/v1/%zz",
        b"/v1/a b",
        b"/v1/\xc3\xa9",
        b"",
        b"v1/customers",
    ],
)
def test_what_leads_nowhere_is_refused(path: bytes) -> None:
    with pytest.raises(RequestRejected):
        target_of(path, b"", STRIPE)


def test_a_simulator_has_all_hosts_at_its_address() -> None:
    assert set(hosts_at("http://127.0.0.1:1/").values()) == {"http://127.0.0.1:1"}
    assert hosts_at("https://api.stripe.com/") == dict(STRIPE)
