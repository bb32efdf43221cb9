"""The one door to the synced tables; see `mirror.door`."""

from pinstripe.mirror.contests import Settle
from pinstripe.mirror.door import Mirror, open_mirror
from pinstripe.mirror.queue import BATCH_ROWS, LIVE_LANE, QUEUE_ROWS
from pinstripe.mirror.scribe import Scribe
from pinstripe.mirror.snapshot import Part, Progress, Truth, Versions

__all__ = [
    "BATCH_ROWS",
    "LIVE_LANE",
    "QUEUE_ROWS",
    "Mirror",
    "Part",
    "Progress",
    "Scribe",
    "Settle",
    "Truth",
    "Versions",
    "open_mirror",
]
