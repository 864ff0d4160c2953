"""The page tables of running sequences, kept from step to step so that a step writes only what is new in them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mdinfer.sequence import Sequence


class PageTables:
    """Row by row for batch slots. A sequence's pages change at their end, or `page_changes` tells."""

    def __init__(self, slots: int, width: int) -> None:
        self._pages = np.zeros((slots, width), dtype=np.int32)
        self._known = [(-1, 0, 0)] * slots  # whose row it is, their page_changes, how many pages stand there

    @property
    def width(self) -> int:
        return self._pages.shape[1]

    def rows(self, sequences: list[Sequence]) -> npt.NDArray[np.int32]:
        """(n, most pages of one); entries behind a sequence's own pages mean nothing."""
        width = 1
        for sequence in sequences:
            arrival, changes, count = self._known[sequence.slot]
            pages = sequence.pages
            if arrival != sequence.arrival or changes != sequence.page_changes:
                count = 0
            if count < len(pages):
                self._pages[sequence.slot, count : len(pages)] = pages[count:]
            self._known[sequence.slot] = (sequence.arrival, sequence.page_changes, len(pages))
            width = max(width, len(pages))
        return self._pages[[sequence.slot for sequence in sequences], :width]
