"""The HTTP client that the official package is given: real requests, with living ids."""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import stripe

from tools.examples.living import Living
from tools.examples.wire import Wire


class LivingClient(stripe.HTTPClient):
    """Sends what the package asks for, and stands in for its own tests' fake client."""

    name = "examples"

    def __init__(self, wire: Wire, living: Living) -> None:
        super().__init__()
        self._wire, self._living = wire, living
        self.last = ""
        """The last request and what came of it, for the report."""

    # --- what the package calls --------------------------------------------------------------

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        came, status, told = self._send(method, url, headers, post_data)
        return came.decode(), status, told

    def request_stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[Any, int, Mapping[str, str]]:
        came, status, told = self._send(method, url, headers, post_data)
        return io.BytesIO(came), status, told

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None, post_data: Any
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """The first answer that is no error, of the requests with living ids; else the last."""
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        form = post_data if isinstance(post_data, str) else ""
        raw = post_data if isinstance(post_data, bytes) else None
        came: tuple[bytes, int, Mapping[str, str]] = (b"{}", 404, {})
        for at, body in self._living.requests(method.upper(), target, form):
            sent = {k: v for k, v in (headers or {}).items() if k.lower() != "idempotency-key"}
            if method == "post":
                sent["Idempotency-Key"] = str(uuid.uuid4())
            content = raw if raw is not None else body.encode() if body else None
            came = self._wire.send(method.upper(), at, sent, content)
            self.last = f"{method.upper()} {at} {body} -> {came[1]} {came[0][:300]!r}"
            if came[1] < 400:
                break
        return came

    def _should_retry(self, *_: Any, **__: Any) -> bool:
        return False

    def close(self) -> None:
        """Nothing is kept open."""

    # --- what the examples call on the fake --------------------------------------------------

    def stub_request(self, *_: Any, **__: Any) -> None:
        """The simulator answers."""

    def get_mock_http_client(self) -> LivingClient:
        return self

    def assert_requested(self, *_: Any, **__: Any) -> None:
        """What was sent is the package's own affair; what came back was read by it."""
