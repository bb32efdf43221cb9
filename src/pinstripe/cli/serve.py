"""`pinstripe serve`: sync and gateway together, for as long as it is let."""

from __future__ import annotations

import asyncio
import json

from pinstripe.cli.summary import how_to_serve
from pinstripe.cli.sync import show, tell
from pinstripe.config import Config
from pinstripe.serving.service import Manner, open_serving
from pinstripe.serving.wire import Report


async def serve(config: Config, *, gateway_only: bool, as_json: bool) -> int:
    """Ends when it is cancelled. With `as_json` the first line on stdout says where it answers."""
    tell_change = _teller()
    manner = Manner(syncs=not gateway_only)
    async with open_serving(config, manner, tell_change, tell) as serving:
        if as_json:
            show(json.dumps({"url": serving.url, "database": serving.database.version}))
        else:
            show(how_to_serve(serving.url, config))
            if config.api_key is None and not gateway_only:
                tell("No STRIPE_API_KEY is set: only stored syncs run (pinstripe syncs add).")
        await asyncio.Event().wait()
    return 0


class _Teller:
    """A line for each change that an operator would tell a colleague."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, str]] = {}

    def __call__(self, sync_id: str, report: Report) -> None:
        now = (report.activity, report.reason)
        if report.activity == "starting" or self._told.get(sync_id) == now:
            return
        self._told[sync_id] = now
        tell(f"{sync_id}: {report.activity}{f': {report.reason}' if report.reason else ''}")
        if report.remedy:
            tell(f"  remedy: {report.remedy}")


def _teller() -> _Teller:
    return _Teller()
