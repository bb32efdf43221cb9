"""When an answer of the proxy's was true: as `client.reply` measures it, from the raw answer."""

from __future__ import annotations

from pinstripe.client.reply import reply_of
from pinstripe.client.transport import Answer
from pinstripe.gateway.upstream import Exchange
from pinstripe.mirror import Truth
from pinstripe.store.changes import Cause


def truth_of_exchange(came: Exchange, *, lag_s: float = 0.0, cause: Cause | None = None) -> Truth:
    """The interval of the objects in the answer; `lag_s` is how old they may be.

    For a write it holds as well: Stripe shows the object as the write left it, or as something else
    changed it before the answer was made.
    """
    headers = {"date": came.header(b"date").decode("latin-1")}
    reply = reply_of(Answer(came.status, headers, b"", came.elapsed_s, came.received_at))
    return Truth(reply.not_before - lag_s, reply.not_after, cause)
