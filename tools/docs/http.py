"""The page of the HTTP API, from the same route list that serves it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

from pinstripe.gateway.api.endpoint import Endpoint, Policy
from pinstripe.gateway.api.openapi import Json, describe
from pinstripe.gateway.app import ROUTES
from tools.docs.markdown import code, table

_DOORS: dict[Policy, str] = {
    "admin": "admin",
    "wait": "wait token, admin, or a Stripe key of the account",
    "signature": "signature",
    "anyone": "open",
}
_HEAD = """# HTTP

What `pinstripe serve` answers. The same description, for programs: `GET /api/openapi.json` (OpenAPI 3.1).

| Path | What it is |
|---|---|
| `/v1/...`, `/v2/...`, `/api.stripe.com/...`, `/files.stripe.com/...` | the proxy: [how-to](../how-to/proxy.md) |
| `/wait/...` | [wait for your write](../how-to/wait.md) |
| `/webhooks/...` | [webhooks](../how-to/webhooks.md), which trigger a poll |
| `/healthz`, `/readyz`, `/metrics` | [monitoring](../how-to/monitoring.md) |
| `/api/...` | below |
| everything else | the console |

## Access

Set `PINSTRIPE_ADMIN_TOKEN` and send it as `Authorization: Bearer TOKEN`. Without one the gateway listens
on this machine only, asks for none, and answers to the names of this machine only. A wrong token is
answered late. There is no CORS: pages of other sites cannot read anything.

## Errors

Everything but the proxy has one shape. `code` is for programs, `hint` says what to do, and may be empty.

```json
{"error": {"code": "unknown_sync", "message": "There is no sync \\"x\\".", "hint": "GET /api/syncs lists the ids."}}
```

| Status | `code` |
|---|---|
| 400 | `bad_request`: a parameter or body that does not fit; `misconfigured`, `wrong_key`: what is requested cannot be |
| 400 | `bad_signature`, `old_signature`: of a webhook; `malformed`, `host`, `transfer_encoding`: not proper HTTP/1.1 |
| 401 | `unauthorized`: the token is missing or wrong |
| 403 | `wrong_host`, `cross_site`: a browser on a page of another site; `not_a_page`: one that would show Stripe's answer |
| 404 | `not_found`, `unknown_sync`, `unknown_platform`, `unknown_table`, `unknown_event`, `not_synced`, `no_events` |
| 405 | `method_not_allowed`: `Allow` names the methods there are; `no_tunnel` |
| 408 | `too_slow`: the body did not come in time |
| 413, 415, 431 | `too_large`, `not_json`, `head_too_large` |
| 429 | `too_many_failures`: wrong tokens; `too_many_keys`: Stripe keys that are new here |
| 500 | `internal`: a bug of ours; the log says more |
| 502 | `stripe_refused`: Stripe refused |
| 503 | `unavailable`: Postgres or Stripe cannot be reached; `too_many` waits; `too_many_streams`; `ending`: it is being stopped |
| 504 | the time of a wait was over: [waiting](../how-to/wait.md#when-it-does-not-come-true) has the codes |
| 505 | `http_version`: not HTTP/1.x |

Unknown parameters and fields are refused, so that a typing error does not pass for a filter.

## Pages and streams

Pages have a `limit` of 500 at most (accounts of a platform: 1,000). Events follow each other by
`starting_after`, changes by position: a reader that has reached one never misses an earlier one. No query
takes longer than ten seconds.

Streams are server-sent events: `curl -N` or a browser's `EventSource` reads them. A comment comes at
least every five seconds. After a break, send the last `id` as `Last-Event-ID` (browsers do): nothing is
missed as long as the entries are kept. 500 streams can be open at once.
"""  # noqa: E501 (rows of tables)


def http_page() -> str:
    """`docs/reference/http.md`."""
    document = describe(ROUTES)
    lines = [_HEAD, "## Endpoints", "", table(("", "Path", "What it gives", "Access"), _overview())]
    for endpoint in ROUTES:
        lines += ["", *_endpoint(endpoint, document)]
    schemas = cast("dict[str, Json]", cast(Json, document["components"])["schemas"])
    lines += ["", "## Types"]
    for name, schema in schemas.items():
        lines += ["", f"### {name}", "", *_schema(schema)]
    return "\n".join(lines)


def _overview() -> Iterator[tuple[str, ...]]:
    for endpoint in ROUTES:
        yield endpoint.method, code(endpoint.path), endpoint.summary, _DOORS[endpoint.policy]


def _endpoint(endpoint: Endpoint, document: Json) -> Iterator[str]:
    paths = cast("dict[str, dict[str, Json]]", document["paths"])
    operation = paths[endpoint.path][endpoint.method.lower()]
    yield f"### {endpoint.method} {endpoint.path}"
    yield ""
    yield f"{endpoint.summary} {endpoint.description}".strip()
    parameters = cast("list[Json]", operation["parameters"])
    rows = [
        (code(str(p["name"])), _type(cast(Json, p["schema"])), str(p.get("description", "")))
        for p in parameters
        if p["in"] == "query"
    ]
    if rows:
        yield ""
        yield table(("Parameter", "Type", "What it does"), rows)
    given = endpoint.stream or endpoint.shape
    told = [f"Takes a {_link(endpoint.body.__name__)}."] if endpoint.body is not None else []
    if given is not None:
        many = "a stream of " if endpoint.stream is not None else ""
        told.append(f"Gives {many}{_link(given.__name__)} ({endpoint.status}).")
    elif endpoint.status == 204:
        told.append("Gives nothing (204).")
    if told:
        yield ""
        yield " ".join(told)


def _schema(schema: Json) -> Iterator[str]:
    if schema.get("description"):
        yield str(schema["description"])
        yield ""
    required = cast("list[str]", schema.get("required", []))
    rows = [
        (
            code(name),
            _type(shape) + ("" if name in required else ", optional"),
            str(shape.get("description", "")),
        )
        for name, shape in cast("dict[str, Json]", schema.get("properties", {})).items()
    ]
    yield table(("Field", "Type", "What it is"), rows)


def _type(schema: Json) -> str:
    """In a word or a few."""
    if "$ref" in schema:
        return _link(str(schema["$ref"]).rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in cast("list[Json]", schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(code(str(v)) or "empty" for v in cast("list[object]", schema["enum"]))
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        return f"list of {_type(cast(Json, schema.get('items', {})))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(cast(Json, schema['additionalProperties']))}"
    if schema.get("format") == "date-time":
        return "time"
    bounds = [
        f"{word} {schema[key]}"
        for key, word in (("minimum", "from"), ("maximum", "to"))
        if key in schema and abs(cast(float, schema[key])) < 10**6
    ]
    return " ".join((kind, *bounds))


def _link(name: str) -> str:
    return f"[{name}](#{re.sub(r'[^a-z0-9_-]', '', name.lower())})"
