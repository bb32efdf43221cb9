"""One line of the route list: a method, a path, who may call it, and the function that answers.

    Endpoint("GET", "/api/syncs/{id}/events", api_events.list_events)

What an endpoint takes and gives stands in the function's own signature and nowhere else: `query` and
`body` are Structs, the returned Struct is the answer, the docstring is its description. Decoding,
checking, the OpenAPI description and the reference page follow from these.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pinstripe.gateway.deps import Gateway
from pinstripe.gateway.http.errors import JSON, HTTPError

HttpMethod = Literal["GET", "POST", "PATCH", "DELETE"]
Policy = Literal["admin", "wait", "signature", "anyone"]
"""Who may call: an admin; who may wait for that sync; who signs with the webhook's secret; anyone."""

BODY_BYTES = 64 * 1024
"""The largest body of our own JSON API; a sync's settings are a few hundred bytes."""

_NOTHING = type(None)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an endpoint. `path`: the parameters of the path, by name."""

    gateway: Gateway
    request: Request
    path: Mapping[str, str]


@dataclass(frozen=True)
class Endpoint:
    """`stream` is the type of the entries of an answer that goes on (server-sent events)."""

    method: HttpMethod
    path: str
    answer: Callable[..., Awaitable[object]]
    policy: Policy = "admin"
    status: int = 200
    stream: type | None = None
    media: str = JSON
    raw: bool = False
    """It parses the request itself, including the query."""
    takes: type | None = None
    """Describes the query parameters that it parses itself."""
    shows: type | None = None
    """The type of a response that it encodes itself."""
    also: Mapping[int, type] = field(default_factory=dict)
    """Other statuses, where the answer is no `ErrorBody`."""

    @cached_property
    def _hints(self) -> dict[str, type]:
        return get_type_hints(self.answer)

    @property
    def query(self) -> type | None:
        return self._hints.get("query")

    @property
    def body(self) -> type | None:
        return self._hints.get("body")

    @property
    def gives(self) -> type | None:
        """The returned type; None if there is none, or the function makes the response."""
        given = self._hints["return"]
        return None if given in (_NOTHING, Response) else given

    @property
    def shape(self) -> type | None:
        """The type in its response."""
        return self.shows or self.gives

    @property
    def name(self) -> str:
        return self.answer.__name__

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.answer.__doc__ or "").strip().partition("\n")[0]

    @property
    def description(self) -> str:
        """The rest of it."""
        rest = (self.answer.__doc__ or "").strip().partition("\n")[2]
        return " ".join(rest.split())

    async def __call__(self, call: Call) -> Response:
        """Decode the request, call the function, encode its result. Raises HTTPError for a bad request."""
        given: dict[str, object] = {}
        if self.query is not None:
            given["query"] = read_query(call.request, self.query)
        elif not self.raw and call.request.url.query:
            raise _bad("This takes no query parameters.")
        if self.body is not None:
            given["body"] = await _read_body(call.request, self.body)
        answer = await self.answer(call, **given)
        if isinstance(answer, Response):
            return answer
        if answer is None:
            return Response(status_code=204)
        return Response(msgspec.json.encode(answer), self.status, media_type=JSON)


Q = TypeVar("Q")


def read_query(request: Request, kind: type[Q]) -> Q:
    """The query parameters as `kind`, a Struct: fields that are tuples may come repeatedly."""
    fields = {f.encode_name: f for f in msgspec.structs.fields(kind)}  # type: ignore[arg-type]
    found: dict[str, object] = {}
    for name, value in request.query_params.multi_items():
        if name not in fields:
            known = ", ".join(fields)
            raise _bad(f"There is no query parameter {name!r}.", hint=f"There are: {known}.")
        if _is_repeated(fields[name].type):
            values = found.setdefault(name, [])
            assert isinstance(values, list)  # noqa: S101 (put there a line above)
            values.append(value)
        elif name in found:
            raise _bad(f"The query parameter {name} stands there twice.")
        else:
            found[name] = value
    return _convert(found, kind)


async def _read_body(request: Request, kind: type[Q]) -> Q:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != JSON:
        raise HTTPError(
            415, "not_json", "The body must be JSON.", hint="Send Content-Type: application/json."
        )
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise HTTPError(413, "too_large", f"The body is larger than {BODY_BYTES} bytes.")
    try:
        found = msgspec.json.decode(bytes(body), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"The body does not fit: {error}.") from error
    if _holds_nul(msgspec.to_builtins(found)):
        raise _bad("A text holds the character NUL.")
    return found


def _convert(found: dict[str, object], kind: type[Q]) -> Q:
    try:
        return msgspec.convert(found, kind, strict=False)
    except (msgspec.ValidationError, OverflowError) as error:
        raise _bad(f"A query parameter does not fit: {error}.") from error


def _is_repeated(kind: object) -> bool:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_origin(kind) is tuple


def _holds_nul(value: object) -> bool:
    """Postgres takes no NUL; nothing that we store or look for has one."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(part) for pair in value.items() for part in pair)
    return isinstance(value, list) and any(map(_holds_nul, value))


def _bad(message: str, *, hint: str = "") -> HTTPError:
    return HTTPError(400, "bad_request", message, hint=hint)
