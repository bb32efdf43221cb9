"""HTTP for the examples: to the simulator or the proxy as the package would, to the simulator's knobs."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit


class Wire:
    """`base` is what the package talks to, `simulator` what stands behind it."""

    def __init__(self, base: str, simulator: str, key: str) -> None:
        self._base, self._simulator, self._key = base, simulator, key

    def send(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[bytes, int, dict[str, str]]:
        """The answer's body, status and headers."""
        sent = headers | {"Authorization": f"Bearer {self._key}"}
        return _ask(self._base, method, target, sent, body)

    def truth(self, type_name: str) -> list[dict[str, Any]]:
        """Every object of the type, oldest first."""
        body = json.dumps({"type": type_name}).encode()
        came, _, _ = _ask(self._simulator, "POST", "/_simulator/truth", {}, body)
        found: list[dict[str, Any]] = json.loads(came).get("result") or []
        return found

    def listed(self, path: str) -> list[str]:
        """Ids of a nested list; none if there is no such list."""
        key = {"Authorization": f"Bearer {self._key}"}
        came, status, _ = _ask(self._simulator, "GET", path, key, None)
        return [str(o["id"]) for o in json.loads(came).get("data", ())] if status == 200 else []

    def make(self, path: str, form: Mapping[str, str], *, key: str = "id") -> str:
        """The id of what a write to the simulator makes (or what stands under another key)."""
        headers = {"Authorization": f"Bearer {self._key}"}
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = urlencode(form).encode()
        came, status, _ = _ask(self._simulator, "POST", path, headers, body)
        if status != 200:
            raise RuntimeError(f"POST {path}: {status} {came!r}")
        return str(json.loads(came)[key])


def _ask(
    base: str, method: str, target: str, headers: dict[str, str], body: bytes | None
) -> tuple[bytes, int, dict[str, str]]:
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=30)
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.read(), answer.status, {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()
