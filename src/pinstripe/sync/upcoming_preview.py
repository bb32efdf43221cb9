"""Asks Stripe what it would invoice next: one preview, whole, with all its lines.

Until acacia `GET /v1/invoices/upcoming`, from basil on `POST /v1/invoices/create_preview`, which changes
nothing (https://docs.stripe.com/changelog/basil/2025-03-31/invoice-preview-api-deprecations). What
becomes of the answer is up to `upcoming`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pinstripe.client.paths import Params
from pinstripe.client.reply import Reply
from pinstripe.errors import (
    Drifted,
    LostLease,
    NotEnabled,
    NotFound,
    NotPermitted,
    PinstripeError,
    Refused,
    WrongKey,
)
from pinstripe.mirror import Truth
from pinstripe.rows.decode import StripeObject
from pinstripe.source.account import Source, endpoint_of
from pinstripe.source.page import PAGE, read_list, read_object, truth_of

Owner = Literal["customer", "subscription"]

_BASIL = "2025-03-31"
_OLD = "/v1/invoices/upcoming"
_NEW = "/v1/invoices/create_preview"
# https://docs.stripe.com/error-codes: nothing is due, in three ways of saying it.
_NOTHING = frozenset(
    {
        "invoice_upcoming_none",
        "invoice_no_customer_line_items",
        "invoice_no_subscription_line_items",
    }
)


@dataclass(frozen=True, slots=True)
class Preview:
    """An invoice that is not one yet. `invoice` is without its `lines` and without ids of the day.

    `unread`: why lines are missing, if they go on and cannot be read to their end.
    """

    invoice: StripeObject
    lines: tuple[StripeObject, ...]
    truth: Truth
    unread: PinstripeError | None = None


def has_rollup(api_version: str) -> bool:
    """Whether Stripe itself finds the next invoice over all subscriptions of a customer.

    >>> has_rollup("2025-02-24.acacia"), has_rollup("2025-03-31.basil")
    (True, False)
    """
    return api_version[:10] < _BASIL


async def ask_preview(
    source: Source, owner: Owner, owner_id: str, *, priority: int
) -> Preview | None:
    """The next invoice of a customer or a subscription; None where nothing is due.

    Raises NotPermitted or NotEnabled where the key may not preview at all, another Refused where
    Stripe cannot compute this one.
    """
    try:
        reply = await _ask(source, [(owner, owner_id)], priority)
    except (NotPermitted, NotEnabled, WrongKey):
        raise
    except NotFound:
        # `invoice_upcoming_none`; or the owner itself is gone.
        return None
    except Refused as error:
        if error.code in _NOTHING:
            return None
        raise
    source.heard(reply)
    body = read_object(reply, _NEW)
    lines, unread = await _lines(source, body, owner_id, priority)
    invoice = {key: value for key, value in body.items() if key not in ("id", "lines")}
    shown = tuple(_without_ids(line) for line in lines)
    return Preview(invoice, shown, truth_of(reply), unread)


async def _ask(source: Source, params: Params, priority: int) -> Reply:
    if has_rollup(source.mirror.api_version):
        return await source.stripe.get(_OLD, params, endpoint=f"GET {_OLD}", priority=priority)
    return await source.stripe.post(
        _NEW, params, endpoint=f"POST {_NEW}", repeatable=True, priority=priority
    )


async def _lines(
    source: Source, body: StripeObject, owner_id: str, priority: int
) -> tuple[list[StripeObject], PinstripeError | None]:
    """All lines; or those that could be read, and why not the others.

    A list that was cut at ten is read anew, from its start: ids of lines are temporary. The preview that
    its address names stays the same for 72 hours, so the pages fit together.
    """
    cut = body.get("lines")
    if not isinstance(cut, dict) or not isinstance(cut.get("data"), list):
        return [], None
    url = cut.get("url")
    shown = [line for line in cut["data"] if isinstance(line, dict)]
    if cut.get("has_more") is not True:
        return shown, None
    if not isinstance(url, str):
        return shown, _unfinished(owner_id, "without an address")
    path, _, query = url.partition("?")
    fixed = [(k, v) for k, _, v in (pair.partition("=") for pair in query.split("&") if pair)]
    found: list[StripeObject] = []
    after: str | None = None
    passed: set[str | None] = {None}
    while True:
        params = [*fixed, ("limit", str(PAGE))]
        if after is not None:
            params.append(("starting_after", after))
        try:
            reply = await source.stripe.get(
                path, params, endpoint=endpoint_of(path), priority=priority
            )
            page = read_list(reply, path)
        except (WrongKey, LostLease):
            raise
        except PinstripeError as error:
            return max(found, shown, key=len), _unfinished(owner_id, error.message)
        found += page.objects
        if not page.has_more:
            return found, None
        if page.after in passed:
            return max(found, shown, key=len), _unfinished(owner_id, "they do not end")
        passed.add(page.after)
        after = page.after


def _unfinished(owner_id: str, why: str) -> Drifted:
    return Drifted(
        f"The lines of the upcoming invoice of {owner_id} go on, but cannot be read: {why}.",
        hint="The row stands with the lines that could be read, and its _extra says so; it is tried again.",
    )


def _without_ids(line: StripeObject) -> StripeObject:
    """`line` without its id and that of the preview, which change with each asking."""
    kept = {key: value for key, value in line.items() if key != "id"}
    invoice = kept.get("invoice")
    if isinstance(invoice, str) and invoice.startswith("upcoming_in"):
        kept["invoice"] = None
    return kept
