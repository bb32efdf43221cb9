"""Pieces of pages, sent to those that are open: what `static/console.js` puts in its place.

    event: replace   {"id": ..., "html": ...}              in the place of the element's content
    event: prepend   {"id": ..., "html": ..., "keep": n}   before it; of its children the first n stay
    event: end                                             nothing will follow

A stream ends when the gateway does; the browser comes back by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from starlette.responses import Response, StreamingResponse

from pinstripe.console.pages import HEADERS
from pinstripe.errors import PinstripeError
from pinstripe.gateway.failures import Rejected
from pinstripe.gateway.parts import Gateway
from pinstripe.gateway.streams import MEDIA, MOST_STREAMS

END = b"event: end\ndata: over\n\n"
"""Nothing will follow: the browser is not to come back."""
ALIVE = b": \n\n"
"""Sent when there is nothing to send, so that nothing between takes the line for dead."""


def replace(element: str, html: str) -> bytes:
    """New content for the element of this id."""
    return _event(b"replace", {"id": element, "html": html})


def prepend(element: str, html: str, *, keep: int) -> bytes:
    """More content, on top of the element of this id."""
    return _event(b"prepend", {"id": element, "html": html, "keep": keep})


def _event(name: bytes, told: dict[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, msgspec.json.encode(told))


def stream(gateway: Gateway, pieces: AsyncIterator[bytes]) -> Response:
    """The answer that goes on. Raises Rejected where too many are open."""
    if gateway.meters.streams >= MOST_STREAMS:
        raise Rejected(
            503, "too_many_streams", f"{MOST_STREAMS} pages are open.", hint="Close some."
        )
    headers = {**HEADERS, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_counted(gateway, pieces), media_type=MEDIA, headers=headers)


async def _counted(gateway: Gateway, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    gateway.meters.streams += 1
    try:
        yield b"retry: 2000\n\n"
        async for piece in pieces:
            yield piece
            if gateway.closing:
                return
    except PinstripeError:
        return  # The browser comes back, and then sees a page that says what is wrong.
    finally:
        gateway.meters.streams -= 1
