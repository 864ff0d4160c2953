"""The prefill of one step in the making: which chunks fit into what is left of its budget."""

from __future__ import annotations

from dataclasses import dataclass

from mdinfer.pictures import LoadedPicture
from mdinfer.sequence import Sequence
from mdinfer.step_plan import Chunk, PageCopy, unencoded


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBudget:
    """Of a step, beside its decoding rows; it is exceeded only for a single block, or a single picture."""

    prefill_tokens: int
    vision_crops: int


class PrefillStep:
    def __init__(self, budget: StepBudget) -> None:
        self.chunks: list[Chunk] = []
        self.pictures: list[LoadedPicture] = []
        self._tokens, self._crops = budget.prefill_tokens, budget.vision_crops

    def reach(self, sequence: Sequence, start: int) -> int:
        """How far the step can prefill a sequence from `start`; `start` itself if it cannot."""
        end = min(sequence.length, start + self._tokens)
        crops, pictures = self._crops, len(self.pictures)
        for (first, last), picture in zip(sequence.prompt.blocks, sequence.pictures, strict=True):
            if last <= start:
                continue
            if first >= end:
                break
            if last > end:  # the block would be cut
                return last if first == start and not self.chunks else first
            if not picture.encoded and picture not in self.pictures:
                if pictures and picture.crop_count > crops:
                    return first
                crops, pictures = crops - picture.crop_count, pictures + 1
        return end

    def add(self, sequence: Sequence, copy: PageCopy | None = None) -> bool:
        """Plan as much of a sequence's prefill as the step can take; True if that is all of it."""
        start, end = sequence.planned, self.reach(sequence, sequence.planned)
        if end == start:
            return False
        chunk = Chunk(sequence, start, end, end == sequence.length, copy)
        self.chunks.append(chunk)
        self._tokens = max(0, self._tokens - (end - start))
        for picture in unencoded(chunk):
            if picture not in self.pictures:
                self.pictures.append(picture)
                self._crops -= picture.crop_count
        sequence.planned = end
        sequence.in_flight += 1
        sequence.pending += chunk.samples
        return chunk.samples
