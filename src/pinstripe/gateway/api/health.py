"""Health endpoints: is the gateway alive, and is the copy ready to be read.

`/healthz` reads nothing: it responds as long as the process runs. `/readyz` says whether SQL returns what
Stripe has. Route proxy traffic by `/healthz`, since the proxy works without a database. Both are public, so
only admins get the ids of syncs and the reasons.
"""

from __future__ import annotations

from importlib.metadata import version

import msgspec
from starlette.responses import Response

from pinstripe.errors import PinstripeError
from pinstripe.gateway.api.endpoint import Call
from pinstripe.gateway.http.errors import JSON
from pinstripe.gateway.http.metrics import MEDIA
from pinstripe.store.platforms.stored import load_platforms
from pinstripe.store.platforms.workers import live_workers


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    ok: bool
    version: str


class Check(msgspec.Struct, frozen=True):
    """One thing that must be well."""

    name: str
    """`database`, or `sync:` or `platform:` and an id; for strangers `syncs`, all of them."""
    ok: bool
    reason: str = ""
    """For admins."""
    remedy: str = ""


class Readiness(msgspec.Struct, frozen=True):
    """Whether all checks are well."""

    ok: bool
    checks: list[Check]


_VERSION = version("pinstripe")


async def healthz(call: Call) -> Alive:
    """Whether the process is alive."""
    return Alive(ok=True, version=_VERSION)


async def readyz(call: Call) -> Response:
    """Whether the copy is ready: the database reachable, each sync that is not paused followed.

    200 or 503, and each check. A sync is not ready before its first copy is complete, a platform without a
    worker that lives.
    """
    syncs = await call.gateway.board.fresh()
    trouble = call.gateway.board.trouble
    checks = [Check("database", not trouble, trouble)]
    checks += [
        Check(f"sync:{live.id}", live.ready, live.reason, live.remedy)
        for live in syncs.values()
        if not live.paused
    ]
    checks += await _platform_checks(call)
    answer = Readiness(all(check.ok for check in checks), checks)
    if not call.gateway.parts.access.is_admin(call.request):
        followed = all(check.ok for check in checks[1:])
        answer = Readiness(answer.ok, [Check("database", checks[0].ok), Check("syncs", followed)])
    return Response(msgspec.json.encode(answer), 200 if answer.ok else 503, media_type=JSON)


async def _platform_checks(call: Call) -> list[Check]:
    """Whether anybody works for the platforms; none of them while the database does not tell."""
    if not call.gateway.parts.syncs.platforms:
        return []
    try:
        async with call.gateway.reads.connection() as connection:
            wanted = [p.id for p in await load_platforms(connection) if not p.paused]
            is_worked_for = bool(await live_workers(connection))
    except PinstripeError:
        return []
    problem = ("", "") if is_worked_for else ("No worker runs.", "Start `pinstripe worker`.")
    return [Check(f"platform:{name}", is_worked_for, *problem) for name in wanted]


async def metrics(call: Call) -> Response:
    """Metrics for Prometheus, in its text format.

    Rows are Postgres's estimates. Kept for two seconds.
    """
    return Response(await call.gateway.metrics.text(), media_type=MEDIA)
