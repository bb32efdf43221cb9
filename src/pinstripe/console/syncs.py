"""The list of syncs, the form that adds one, and pause, resume and remove.

`/welcome` is the same form for a service without syncs. A key is passed to `SyncControl` and nowhere
else: no page shows it again, not even a form that was rejected.
"""

from __future__ import annotations

import re

from starlette.responses import Response

from pinstripe.console.keys import KeyChecks
from pinstripe.console.page_context import PageContext, go
from pinstripe.console.templating import Notice
from pinstripe.errors import PinstripeError
from pinstripe.gateway.syncs import NewSync

_ID = re.compile(r"[a-z0-9-]{1,40}")
_STEPS = {"paused": "paused", "resumed": "resumed", "removed": "removed", "added": "added"}


class Stored:
    """The pages `/syncs` and `/welcome`, and the buttons on them."""

    def __init__(self, examinations: KeyChecks) -> None:
        self._examinations = examinations

    async def show(self, visit: PageContext) -> Response:
        """All syncs, and the form for one more."""
        done, name = visit.text("done"), visit.text("id")
        known = done in _STEPS and _ID.fullmatch(name)
        told = [Notice(f"{name} was {_STEPS[done]}.", kind="good")] if known else []
        return visit.page("stored.html", messages=told, given={})

    async def welcome(self, visit: PageContext) -> Response:
        """The first page of a service without syncs."""
        if visit.syncs:
            return go("/")
        return visit.page("welcome.html", given={})

    async def add(self, visit: PageContext) -> Response:
        """Verify the key with Stripe and start the sync. Errors are shown above the same form."""
        first = not visit.syncs
        given = {n: visit.text(n) for n in ("id", "schema", "account", "tables", "stripe_url")}
        options = NewSync(
            id=given["id"] or "main",
            api_key=visit.text("key"),
            schema=given["schema"] or None,
            stripe_account=given["account"] or None,
            stripe_url=given["stripe_url"],
            settings={"tables": given["tables"]} if given["tables"] else {},
        )
        try:
            sync = await visit.gateway.parts.control.add(options)
        except PinstripeError as error:
            told = Notice(error.message, error.hint, "bad")
            page = "welcome.html" if first else "stored.html"
            return visit.page(page, messages=[told], status=400, given=given)
        self._examinations.begin(visit.gateway, sync)
        return go(f"/syncs/{sync.id}/keys?new=1")

    async def pause(self, visit: PageContext) -> Response:
        assert visit.sync is not None  # noqa: S101 (its route names it)
        await visit.gateway.parts.control.pause(visit.sync.id)
        return go(f"/syncs?done=paused&id={visit.sync.id}")

    async def resume(self, visit: PageContext) -> Response:
        assert visit.sync is not None  # noqa: S101 (its route names it)
        await visit.gateway.parts.control.resume(visit.sync.id)
        return go(f"/syncs?done=resumed&id={visit.sync.id}")

    async def remove(self, visit: PageContext) -> Response:
        """Only with its name typed: with its tables, rows are gone for good."""
        assert visit.sync is not None  # noqa: S101 (its route names it)
        if visit.text("typed") != visit.sync.id:
            told = Notice(
                f"{visit.sync.id} was not removed.",
                "Type its ID to confirm.",
                "warn",
            )
            return visit.page("stored.html", messages=[told], status=400, given={})
        await visit.gateway.parts.control.remove(
            visit.sync.id, drop_tables=bool(visit.text("drop"))
        )
        return go(f"/syncs?done=removed&id={visit.sync.id}")
