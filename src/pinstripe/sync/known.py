"""Which events are applied, and which of them say that everything below them is applied too.

Two read the log at the same time: the poll reads its top down to the first event that it knows, sweeps
read whole windows. Both apply long stretches in pieces, newest first. What is applied of a stretch that is
not read to its end is *loose*: whoever meets it must not stop there. If that reading fails halfway, its
events stay loose, and the next poll goes on below them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence

from pinstripe.rows.decode import StripeObject

_MOST_SHOWN = 500
"""Five whole pages: the page of a look is larger while the account is busy."""


class Known:
    """Events by id, with the second in which they were created."""

    def __init__(self) -> None:
        self._created: dict[str, int] = {}
        self._loose: set[str] = set()
        self._shown: OrderedDict[str, None] = OrderedDict()

    def load(self, created: Mapping[str, int]) -> None:
        """Begins anew with what an earlier run applied. All of it is loose: nobody knows how it ended."""
        self._created = dict(created)
        self._loose = set(created)

    def has_all(self, keys: Iterable[str | None]) -> bool:
        """Whether nothing is new."""
        return all(key in self._created for key in keys)

    def is_reached(self, keys: Iterable[str | None]) -> bool:
        """Whether one of these is known, and with it everything below."""
        return any(key in self._created and key not in self._loose for key in keys)

    def loose(self, keys: Iterable[str | None]) -> set[str]:
        """Those that are loose."""
        return self._loose.intersection(key for key in keys if key is not None)

    def fresh(self, events: Sequence[StripeObject]) -> list[StripeObject]:
        """Those that are not applied yet."""
        return [event for event in events if event.get("id") not in self._created]

    def add(self, created: Mapping[str, int], *, loose: bool) -> None:
        """These are applied. `loose`: the reading that they are of goes on below them."""
        self._created.update(created)
        if loose:
            self._loose.update(created)

    def shown(self, keys: Iterable[str | None]) -> None:
        """The top of the log shows these. Of a quiet account they are days old, and stay there: they are
        remembered, lest they be taken for new again. (No look at their seconds says that they are old
        news: what test clocks make may be of any second.)
        """
        for key in keys:
            if key is not None:
                self._shown[key] = None
                self._shown.move_to_end(key)
        while len(self._shown) > _MOST_SHOWN:
            self._shown.popitem(last=False)

    def fasten(self, keys: Collection[str]) -> None:
        """The reading that showed these has come to its end: nothing below them is missing."""
        self._loose.difference_update(keys)

    def forget(self, before: float) -> None:
        """Drops what was created before, unless the top of the log has shown it lately."""
        self._created = {
            key: at for key, at in self._created.items() if at >= before or key in self._shown
        }
        self._loose &= self._created.keys()
