"""Point in time: how many rows of the same key lie strictly before a moment."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kunlun.data.values import Int64

Keys = NDArray[np.integer[Any]]
ROOM = 2**62  # of an int64 that holds (key, time)


class Past:
    """Rows with an integer key and a time, ordered by (key, time); ties keep their order.

    Args: keys [n] >= 0, times int64 [n] ms. Memory 16 bytes a row; build O(n log n).
    """

    def __init__(self, keys: Keys, times: Int64) -> None:
        self.first = int(times.min()) if len(times) else 0
        self.width = (int(times.max()) - self.first if len(times) else 0) + 2
        self.moments: Int64 | None = None
        if (int(keys.max(initial=0)) + 1) * self.width >= ROOM:
            # Years of ms times a billion keys: number the distinct times instead.
            ordered = np.sort(times)
            self.moments = ordered[np.append(True, np.diff(ordered) > 0)]
            self.width = len(self.moments) + 1
        code = self._code(keys, times)
        self.order = np.argsort(code, kind="stable")  # int64 [n], rows in (key, time) order
        self.code = code[self.order]

    def _code(self, keys: Keys, times: Int64) -> Int64:
        """(key, time) as one int64 of the same order; a time behind the last is one moment more."""
        if self.moments is not None:
            moment = np.searchsorted(self.moments, times, side="left")
        else:
            moment = np.clip(times - self.first, 0, self.width - 1)
        code: Int64 = keys.astype(np.int64) * self.width + moment
        return code

    def before(self, keys: Keys, times: Int64) -> Int64:
        """For each query the end, in `order`, of the key's rows with time < times; int64 [q]."""
        query = self._code(keys, times)
        order = np.argsort(query, kind="stable")  # sorted queries keep the search in cache
        found = np.empty(len(query), np.int64)
        found[order] = np.searchsorted(self.code, query[order], side="left")
        return found

    def starts(self, keys: Keys) -> Int64:
        """For each key the position, in `order`, of its first row; int64 [q]."""
        return np.searchsorted(self.code, keys.astype(np.int64) * self.width, side="left")
