"""The one door to the synced tables; see `mirror.door`."""

from pinstripe.mirror.mirror import Mirror, Resolve, Sink, open_mirror
from pinstripe.mirror.queue import (
    BATCH_ROWS,
    LIVE_LANE,
    QUEUE_ROWS,
    ExpectedVersions,
    Part,
    Progress,
)

__all__ = [
    "BATCH_ROWS",
    "LIVE_LANE",
    "QUEUE_ROWS",
    "ExpectedVersions",
    "Mirror",
    "Part",
    "Progress",
    "Resolve",
    "Sink",
    "open_mirror",
]
