"""Keys: what a sync's key may read, what it lacks, and how to make a better one.

The key itself is on no page. An examination is begun by a button (a hundred requests are not to be spent
by a link) or by the first run, shows how far it is, and is kept with its time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from starlette.responses import Response

from pinstripe.console import sse
from pinstripe.console.connect import gateway_of
from pinstripe.console.examinations import Examination, Examinations
from pinstripe.console.pages import HEADERS, Message, Pages, path_of
from pinstripe.console.snippets import of_webhook
from pinstripe.console.visit import Visit
from pinstripe.doctor.findings import KeyReport, Resource
from pinstripe.errors import Misconfigured, PinstripeError
from pinstripe.gateway.control import SyncChange

_ABILITIES = {
    "events": "Follow events",
    "previews": "Preview invoices",
    "webhooks_read": "List webhook endpoints",
    "webhooks_write": "Make webhook endpoints",
}
_WORDS = {"yes": ("yes", "good"), "no": ("no", "bad"), "unknown": ("not known", "")}
"""State of an ability -> word and colour."""
_GIVEN = ("not_permitted", "refused", "failed")


@dataclass(frozen=True, slots=True)
class Product:
    """The resources of one product. `wrong`: those that stay empty for want of something."""

    name: str
    resources: tuple[Resource, ...]

    @property
    def readable(self) -> int:
        return sum(r.state == "readable" for r in self.resources)

    @property
    def unused(self) -> int:
        return sum(r.state in ("not_enabled", "not_tried") for r in self.resources)

    @property
    def wrong(self) -> list[Resource]:
        return [r for r in self.resources if r.state in _GIVEN]


class Keys:
    """The page `/syncs/{sync}/keys`, its stream, and its two buttons."""

    def __init__(self, pages: Pages, examinations: Examinations) -> None:
        self._pages = pages
        self._examinations = examinations

    async def show(self, visit: Visit) -> Response:
        """The last report, or how far the examination is."""
        return self._page(visit)

    async def examine(self, visit: Visit) -> Response:
        """Begins an examination."""
        assert visit.sync is not None  # noqa: S101 (its route names it)
        self._examinations.begin(visit.gateway, visit.sync)
        return visit.go("keys")

    async def change(self, visit: Visit) -> Response:
        """Another key for the same account; it is examined at once."""
        assert visit.sync is not None  # noqa: S101 (its route names it)
        try:
            if not visit.text("key"):
                raise Misconfigured("No key was given.", hint="Paste the new key.")
            change = SyncChange(api_key=visit.text("key"))
            changed = await visit.gateway.parts.control.change(visit.sync.id, change)
        except PinstripeError as error:
            return self._page(visit, Message(error.message, error.hint, "bad"), status=400)
        self._examinations.begin(visit.gateway, changed)
        return visit.go("keys")

    async def live(self, visit: Visit) -> Response:
        """The examination to its end; 204 tells the browser not to come back.

        It may have ended since the page was made: then the report comes all the same.
        """
        assert visit.sync is not None  # noqa: S101 (its route names it)
        found = self._examinations.of(visit.sync)
        if found is None:
            return Response(status_code=204, headers=HEADERS)
        return sse.stream(visit.gateway, self._steps(visit, found))

    async def _steps(self, visit: Visit, found: Examination) -> AsyncIterator[bytes]:
        async for _ in found.follow():
            yield self._piece(visit, found)
        yield self._piece(visit, found)
        yield sse.END

    def _piece(self, visit: Visit, found: Examination) -> bytes:
        html = self._pages.piece("keys_report.html", **_shown(visit, found))
        return sse.replace("report", html)

    def _page(self, visit: Visit, *messages: Message, status: int = 200) -> Response:
        assert visit.sync is not None  # noqa: S101 (its route names it)
        return visit.page(
            "keys.html",
            messages=messages,
            status=status,
            is_new=bool(visit.request.query_params.get("new")),
            **_shown(visit, self._examinations.of(visit.sync)),
        )


def _shown(visit: Visit, found: Examination | None) -> dict[str, object]:
    """What the piece needs, on the page and in the stream."""
    sync = visit.sync
    assert sync is not None  # noqa: S101 (its route names it)
    report = found.report if found is not None and not found.runs else None
    gateway = gateway_of(visit)
    abilities = report.abilities if report else ()
    resources = report.resources if report else ()
    return {
        "found": found,
        "report": report,
        "products": list(_products(resources)),
        "untried": ", ".join(t for r in resources if r.state == "not_tried" for t in r.tables),
        "abilities": [(_ABILITIES[a.name], a, *_WORDS[a.state]) for a in abilities],
        "other_findings": _others(report) if report else [],
        "overview": path_of(sync.id),
        "stored": sync.stored,
        "webhook_secrets": sync.webhook_secrets,
        "webhook_url": gateway.webhook,
        "webhook_create": next(of_webhook(gateway, stored=sync.stored)).text,
        "dashboard": _dashboard(livemode=bool(sync.livemode)),
    }


def _products(resources: Iterable[Resource]) -> Iterable[Product]:
    """In the doctor's order."""
    by_name: dict[str, list[Resource]] = {}
    for resource in resources:
        by_name.setdefault(resource.product, []).append(resource)
    return (Product(name, tuple(found)) for name, found in by_name.items())


def _others(report: KeyReport) -> list[Message]:
    """What stands neither in the products nor among the abilities."""
    paths = {r.path for r in report.resources} | {"events", "previews", "webhooks"}
    kinds = {"problem": "bad", "warning": "warn", "note": "", "ok": "good"}
    return [
        Message(f.message, f.remedy, kinds[f.state])
        for f in report.findings
        if f.about not in paths
    ]


def _dashboard(*, livemode: bool) -> str:
    return "https://dashboard.stripe.com" + ("" if livemode else "/test") + "/apikeys"
