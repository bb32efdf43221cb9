"""Keys: what a sync's key can read, what it lacks, and how to create a better one.

The key itself is on no page. A key check sends about 120 small requests within the sync's own rate
limit, so only a button or the first run starts it, never a link. At most one check runs for each sync.
Its progress and its last report are kept in memory until the next check or until the sync gets another
key; a restart drops them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from starlette.responses import Response

from pinstripe.client.webhook_endpoints import WebhookEndpoint, list_endpoints
from pinstripe.concurrency import wait_for
from pinstripe.console import templating
from pinstripe.console.connect import gateway_of, of_webhook
from pinstripe.console.page_context import PageContext
from pinstripe.console.templating import HEADERS, Notice, Pages, path_of
from pinstripe.doctor.key import examine
from pinstripe.doctor.report import KeyReport, Resource
from pinstripe.errors import Misconfigured, NotPermitted, PinstripeError
from pinstripe.gateway.deps import Gateway
from pinstripe.gateway.syncs import OpenSync, StoredSync, SyncChange

_ABILITIES = {
    "events": "Follow events",
    "previews": "Preview invoices",
    "webhooks_read": "List webhook endpoints",
    "webhooks_write": "Manage webhook endpoints",
}

_WORDS = {"yes": ("yes", "good"), "no": ("no", "bad"), "unknown": ("unknown", "")}
"""State of an ability -> word and colour."""

_GIVEN = ("not_permitted", "refused", "failed")


@dataclass(frozen=True, slots=True)
class Product:
    """The resources of one product. `wrong`: those whose tables stay empty."""

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

    def __init__(self, pages: Pages, examinations: KeyChecks) -> None:
        self._pages = pages
        self._checks = examinations

    async def show(self, visit: PageContext) -> Response:
        """The last report, or how far the examination is."""
        return self._page(visit)

    async def check_key(self, visit: PageContext) -> Response:
        """Begins an examination."""
        self._checks.begin(visit.gateway, visit.sync)
        return visit.redirect("keys")

    async def change(self, visit: PageContext) -> Response:
        """Replace the key with another one of the same account, and check it."""
        try:
            if not visit.text("key"):
                raise Misconfigured("No key was entered.", hint="Enter the new key.")
            change = SyncChange(api_key=visit.text("key"))
            changed = await visit.gateway.parts.control.change(visit.sync.id, change)
        except PinstripeError as error:
            return self._page(visit, Notice(error.message, error.hint, "bad"), status=400)
        self._checks.begin(visit.gateway, changed)
        return visit.redirect("keys")

    async def live(self, visit: PageContext) -> Response:
        """Stream the check until it ends; 204 stops the browser from reconnecting.

        If it ended after the page was rendered, the report is still sent.
        """
        found = self._checks.of(visit.sync)
        if found is None:
            return Response(status_code=204, headers=HEADERS)
        return templating.stream(visit.gateway, self._steps(visit, found))

    async def _steps(self, visit: PageContext, found: KeyCheck) -> AsyncIterator[bytes]:
        async for _ in found.follow():
            yield self._piece(visit, found)
        yield self._piece(visit, found)
        yield templating.END

    def _piece(self, visit: PageContext, found: KeyCheck) -> bytes:
        html = self._pages.piece("keys_report.html", **_shown(visit, found))
        return templating.replace("report", html)

    def _page(self, visit: PageContext, *messages: Notice, status: int = 200) -> Response:
        return visit.page(
            "keys.html",
            messages=messages,
            status=status,
            is_new=bool(visit.request.query_params.get("new")),
            **_shown(visit, self._checks.of(visit.sync)),
        )


def _shown(visit: PageContext, found: KeyCheck | None) -> dict[str, object]:
    """What the piece needs, on the page and in the stream."""
    sync = visit.sync
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


def _others(report: KeyReport) -> list[Notice]:
    """Return the findings that neither products nor capabilities show."""
    paths = {r.path for r in report.resources} | {"events", "previews", "webhooks"}
    kinds = {"problem": "bad", "warning": "warn", "note": "", "ok": "good"}
    return [
        Notice(f.message, f.remedy, kinds[f.state]) for f in report.findings if f.about not in paths
    ]


def _dashboard(*, livemode: bool) -> str:
    return "https://dashboard.stripe.com" + ("" if livemode else "/test") + "/apikeys"


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_OPENS_WITHIN_S = 60.0
"""A new sync is open when its process has made the tables, some seconds after it was added."""

_LOOK_S = 0.1
_TELL_S = 1.0


@dataclass(frozen=True, slots=True)
class WebhookList:
    """The endpoints at Stripe that notify this sync; None if the key cannot list them."""

    endpoints: tuple[WebhookEndpoint, ...] | None


@dataclass(slots=True)
class KeyCheck:
    """A key check, running or finished. `of` identifies the key; `done` and `total` count requests."""

    of: str
    done: int = 0
    total: int = 0
    report: KeyReport | None = None
    webhooks: WebhookList = field(default_factory=lambda: WebhookList(None))
    error: PinstripeError | None = None
    ended_at: datetime | None = None
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def runs(self) -> bool:
        return self.ended_at is None

    def tell(self, done: int, total: int) -> None:
        """What the doctor calls after each request."""
        self.done, self.total = done, total
        self.stir()

    def stir(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def follow(self) -> AsyncIterator[None]:
        """After each step, and every second anyway; ends when the examination has."""
        while self.runs:
            await wait_for(self._moved, _TELL_S)
            yield


class KeyChecks:
    """Of all syncs, by id."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._by_id: dict[str, KeyCheck] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, sync: StoredSync) -> KeyCheck | None:
        """The one that runs, or the last one of this very key."""
        found = self._by_id.get(sync.id)
        return found if found is not None and found.of == _mark(sync) else None

    def begin(self, gateway: Gateway, sync: StoredSync) -> KeyCheck:
        """Begins one, unless one runs."""
        found = self.of(sync)
        if found is not None and found.runs:
            return found
        begun = self._by_id[sync.id] = KeyCheck(_mark(sync))
        task = asyncio.create_task(self._run(gateway, sync.id, begun), name="examination")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return begun

    async def _run(self, gateway: Gateway, sync_id: str, begun: KeyCheck) -> None:
        try:
            opened = await _opened(gateway, sync_id)
            stripe = opened.source.stripe
            begun.report = await examine(stripe, list(opened.mirror.tables), tell=begun.tell)
            begun.webhooks = WebhookList(await _endpoints(opened, sync_id))
        except PinstripeError as error:
            begun.error = error
        except Exception as error:
            # The top of this task: the sync may have been closed meanwhile.
            _log.warning("examination.broken", sync=sync_id, error=type(error).__name__)
            begun.error = PinstripeError(
                "The key check failed.", hint="Check the key again. See the log for details."
            )
        finally:
            begun.ended_at = self._now()
            begun.stir()


def _mark(sync: StoredSync) -> str:
    return f"{sync.key_hint} {sync.stripe_account} {sync.schema}"


async def _opened(gateway: Gateway, sync_id: str) -> OpenSync:
    for _ in range(int(_OPENS_WITHIN_S / _LOOK_S)):
        opened = gateway.parts.syncs.get(sync_id)
        if opened is not None:
            return opened
        if gateway.closing:
            break
        await asyncio.sleep(_LOOK_S)
    raise PinstripeError(
        "The key could not be checked: its tables do not exist yet.",
        hint="See the overview for the reason. Check the key again once the initial sync has started.",
    )


async def _endpoints(opened: OpenSync, sync_id: str) -> tuple[WebhookEndpoint, ...] | None:
    """Those of ours, and those that call an address of this sync."""
    try:
        known = await list_endpoints(opened.source.stripe)
    except NotPermitted:
        return None
    path = f"/webhooks/stripe/{sync_id}"
    return tuple(e for e in known if e.sync_id == sync_id or e.url.endswith(path))
