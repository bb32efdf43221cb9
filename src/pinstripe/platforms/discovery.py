"""Finds the connected accounts of a platform: `GET /v1/accounts`, newest first.

An account that is found is added with its first copy requested; one that had taken its authorisation back
and is listed again goes on. Webhooks name accounts sooner (`store.sweep.welcome`); this is the net. That an
account is gone is not read off the list: Stripe answers its own requests with a 403 then
(`errors.WrongAccount`). https://docs.stripe.com/api/accounts/list
"""

from __future__ import annotations

import structlog

from pinstripe.client.client import StripeClient
from pinstripe.client.pagination import iter_pages, list_at
from pinstripe.client.rate_limit import WorkClass
from pinstripe.store.pool import Pool
from pinstripe.store.sweep import welcome

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

_PATH = "/v1/accounts"


async def discover(
    stripe: StripeClient, pool: Pool, platform_id: str, schema: str, *, whole: bool
) -> list[str]:
    """Add the accounts that are new; return their ids.

    Ends at the first page without one, unless the `whole` list is to be read: only that finds accounts that
    authorised the platform again. Raises what a request raises: NotEnabled where the key's account is no
    platform.
    """
    request = list_at(stripe, _PATH, endpoint=f"GET {_PATH}", priority=WorkClass.HEADS)
    found: list[str] = []
    async for page in iter_pages(request, on_lost_cursor="restart"):
        ids = [str(obj["id"]) for obj in page.objects if isinstance(obj.get("id"), str)]
        async with pool.transaction() as connection:
            added = await welcome(connection, platform_id, schema, ids)
        found += added
        if not added and not whole:
            break
    if found:
        _log.info("platform.accounts", platform=platform_id, new=len(found))
    return found
