"""The catalog seen from HTTP: which operation a request means, and which lists hang under what.

Routes come from the catalog's paths alone. Also here, because paths say it: the parents of nested
lists, and the URL under which the children of one object are listed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote_plus

from pinstripe.catalog.model import Field, ObjectType, Operation, Spec
from pinstripe_simulator.beyond_types import corrected
from pinstripe_simulator.versions import before_basil

_UPCOMING = Operation(
    method="GET",
    path="/v1/invoices/upcoming",
    kind="action",
    returns=("invoice",),
    params=tuple(
        Field(name=name, kind="string", nullable=True)
        for name in ("customer", "subscription", "schedule")
    ),
)
_UPCOMING_LINES = Operation(
    method="GET",
    path="/v1/invoices/upcoming/lines",
    kind="action",
    returns=("line_item",),
    params=(
        *_UPCOMING.params,
        Field(name="limit", kind="integer", nullable=True),
        Field(name="starting_after", kind="string", nullable=True),
    ),
)
# From basil on a preview has an id, under which its lines are listed for a while.
_PREVIEW_LINES = Operation(
    method="GET",
    path="/v1/invoices/{invoice}/lines",
    kind="action",
    returns=("line_item",),
    params=_UPCOMING_LINES.params[-2:],
)
_PREVIEW = re.compile(r"/v1/invoices/(upcoming_in_\w+)/lines\Z")
# Real addresses, named by the `url` of lists inside objects, that the SDK has no method for.
_UNNAMED = tuple(
    Operation(
        method="GET",
        path=path,
        kind="list",
        returns=(child,),
        params=(
            Field(name="ending_before", kind="string", nullable=True),
            Field(name="expand", kind="array", nullable=True),
            Field(name="limit", kind="integer", nullable=True),
            Field(name="starting_after", kind="string", nullable=True),
        ),
    )
    for path, child in (
        ("/v1/charges/{charge}/refunds", "refund"),
        ("/v1/customers/{customer}/subscriptions", "subscription"),
    )
)
# Answers with a file, which the SDK's own types (and so the catalog) have no object for.
QUOTE_PDF = Operation(
    method="GET", path="/v1/quotes/{quote}/pdf", kind="action", returns=("quote",)
)
_BRACES = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class Match:
    """An operation and the values of its path parameters, in order."""

    operation: Operation
    path_values: tuple[str, ...]

    @property
    def place(self) -> str:
        """The name of the path's last parameter, such as `intent`; "" if it has none."""
        names = _BRACES.findall(self.operation.path)
        return names[-1] if names else ""


class Routes:
    """Every operation of the catalog, by method and path."""

    def __init__(self, spec: Spec) -> None:
        self.objects: Mapping[str, ObjectType] = {o.name: corrected(o) for o in spec.objects}
        self._fixed: dict[str, dict[str, Operation]] = defaultdict(dict)
        self._open: dict[int, list[tuple[re.Pattern[str], Operation]]] = defaultdict(list)
        self.owner: dict[str, str] = {}
        """Path of an object ("/v1/charges/{}") -> its type."""
        self.fields: dict[str, dict[str, Field]] = {
            o.name: {f.name: f for f in o.fields} for o in self.objects.values()
        }
        for operation in (*spec.operations, *_UNNAMED, QUOTE_PDF):
            path = operation.path
            if "{" not in path:
                self._fixed[path][operation.method] = operation
                continue
            pattern = re.compile(_BRACES.sub("([^/]+)", path) + r"\Z")
            self._open[path.count("/")].append((pattern, operation))
            if path.endswith("}") and operation.returns and operation.kind != "list":
                place = _BRACES.sub("{}", path)
                if place not in self.owner or operation.kind == "retrieve":
                    self.owner[place] = operation.returns[0]
        for routes in self._open.values():
            routes.sort(key=lambda r: len(_BRACES.findall(r[1].path)))
        self.lists = [o for o in (*spec.operations, *_UNNAMED) if o.kind == "list"]
        self.top_lists = {
            o.returns[0]: o for o in self.lists if "{" not in o.path and "preview" not in o.path
        }
        self.nested: dict[tuple[str, str], Operation] = {}
        """(child type, parent type) -> the nested list operation."""
        for operation in self.lists:
            parent = self.parent(operation)
            if parent and "computed" not in operation.path:
                self.nested[self.child(operation), parent] = operation

    def parent(self, operation: Operation) -> str:
        """The type of the object whose nested list (or child) `operation` is about, or ""."""
        at = operation.path.find("}")
        if at < 0 or at == len(operation.path) - 1:
            return ""
        return self.owner.get(_BRACES.sub("{}", operation.path[: at + 1]), "")

    @staticmethod
    def child(operation: Operation) -> str:
        """The type that `operation` answers with; of several, the one that we hold there."""
        several = operation.returns
        if "card" in several and "/customers/" in operation.path:
            return "card"
        return several[0] if several else ""

    def match(self, method: str, path: str) -> Match | None:
        """The operation for `path` (still percent-encoded), or None."""
        fixed = self._fixed.get(path)
        if fixed is not None and method in fixed:
            return Match(fixed[method], ())
        if fixed is not None:
            return None
        for pattern, operation in self._open.get(path.count("/"), ()):
            if operation.method == method and (found := pattern.match(path)):
                return Match(operation, tuple(unquote_plus(v) for v in found.groups()))
        return None

    def match_preview(self, method: str, path: str, version: str) -> Match | None:
        """Operations on upcoming invoices that the catalog does not have: old, or of a moment."""
        if method != "GET":
            return None
        if before_basil(version):
            for operation in (_UPCOMING, _UPCOMING_LINES):
                if path == operation.path:
                    return Match(operation, ())
        found = _PREVIEW.match(path)
        return Match(_PREVIEW_LINES, (found[1],)) if found else None

    def list_url(self, child: str, parent: str, field: str, parent_id: str) -> str:
        """What Stripe puts in the `url` of a list inside an object."""
        nested = self.nested.get((child, parent))
        safe = quote(parent_id, safe="")
        if nested is not None:
            return _BRACES.sub(safe, nested.path)
        top = self.top_lists.get(child)
        by = field or parent.rpartition(".")[2]
        if top is not None and any(p.name == by for p in top.params):
            return f"{top.path}?{by}={safe}"
        return f"/v1/{parent.replace('.', '/')}s/{safe}/{child}s"
