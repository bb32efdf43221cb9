"""The mirror: writes Stripe objects to the synced tables; nothing else does. See `mirror.mirror`."""

from pinstripe.mirror.batch import BATCH_ROWS, LIVE_LANE, QUEUE_ROWS, Part, Progress
from pinstripe.mirror.mirror import Mirror, Resolve, Sink, open_mirror

__all__ = [
    "BATCH_ROWS",
    "LIVE_LANE",
    "QUEUE_ROWS",
    "Mirror",
    "Part",
    "Progress",
    "Resolve",
    "Sink",
    "open_mirror",
]
