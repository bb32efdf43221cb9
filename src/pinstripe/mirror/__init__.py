"""The one door to the synced tables; see `mirror.door`."""

from pinstripe.mirror.mirror import Mirror, Scribe, Settle, open_mirror
from pinstripe.mirror.queue import BATCH_ROWS, LIVE_LANE, QUEUE_ROWS, Part, Progress, Versions

__all__ = [
    "BATCH_ROWS",
    "LIVE_LANE",
    "QUEUE_ROWS",
    "Mirror",
    "Part",
    "Progress",
    "Scribe",
    "Settle",
    "Versions",
    "open_mirror",
]
