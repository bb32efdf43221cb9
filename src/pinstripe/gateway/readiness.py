"""Whether a sync's copy is ready to be read, and if not, why not: for health, the board and the console.

Pure: from what its user wants, what the database says, and what its process says of itself.
"""

from __future__ import annotations

from pinstripe.gateway.control import StoredSync
from pinstripe.store.processes import STALE_S, ProcessState
from pinstripe.store.standing import Standing

SLOWEST_S = 60.0
"""A quiet live account is looked at once a minute (docs/how-to/rate-limits.md)."""


def trouble_of(
    sync: StoredSync, standing: Standing | None, told: ProcessState | None, *, database: str
) -> tuple[str, str]:
    """(reason, remedy) why the copy is not ready; both "" where all is well.

    `told` is None where its process said nothing lately; `database`: why that did not answer, or "".
    """
    if database:
        return database, "See the database; the gateway looks again by itself."
    if sync.paused:
        return "Paused.", f"pinstripe syncs resume {sync.id}"
    if sync.state.activity == "failed":
        return sync.state.reason or "It failed.", sync.state.remedy
    if standing is None or standing.lag_s is None:
        return sync.state.reason or "The first copy has not begun.", sync.state.remedy
    if standing.trouble:
        return standing.trouble, standing.remedy
    if standing.running or (told is not None and told.phase != "done"):
        return "The first copy is under way.", "Wait for it to end."
    if told is None and standing.lag_s > STALE_S:
        return (
            sync.state.reason or "No process syncs it.",
            sync.state.remedy or "Start `pinstripe serve` or `pinstripe sync`.",
        )
    poll_s = told.allowance.poll_s if told is not None and told.allowance is not None else 0.0
    if standing.lag_s > SLOWEST_S + 3 * poll_s:
        return f"Events are {standing.lag_s:.0f} s behind.", "The log of the sync says why."
    return "", ""
