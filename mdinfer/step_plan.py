"""What one step does: values that the scheduler makes and the runner carries out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mdinfer.pictures import LoadedPicture
from mdinfer.sequence import Sequence


class PageCopy(NamedTuple):
    source: int
    into: int


class Chunk(NamedTuple):
    """Positions start .. end - 1 of a sequence.

    samples  the chunk reaches the sequence's end, so the step samples its token number `end - len(prompt)`
    copy     to be made before the step: the sequence goes on within a page that others hold
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool
    copy: PageCopy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Rows of the step, in order.

    prefill   chunks of known positions: of prompts, and of what had been sampled before a preemption
    decode    one position each, whose input is what the sequence's step before sampled; it need not be read yet
    pictures  to be encoded first, each once; those of other images in the chunks are encoded already

    Copies of pages come before anything is written; none copies a page that another one copies into.
    """

    prefill: tuple[Chunk, ...] = ()
    decode: tuple[Chunk, ...] = ()
    pictures: tuple[LoadedPicture, ...] = ()

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.prefill + self.decode

    @property
    def copies(self) -> list[PageCopy]:
        return [chunk.copy for chunk in self.prefill if chunk.copy is not None]

    def singly(self) -> Iterator[StepPlan]:
        """The same work, one sequence at a time: to do over a step that failed and see on whose account.

        Made once all steps before are read. Then decoding rows are positions as well known as a prompt's and go as
        such: what the device was about to feed them may have been overwritten by the step that failed.
        """
        for chunk in self.chunks:
            yield StepPlan(prefill=(chunk,), pictures=tuple(unencoded(chunk)))


def unencoded(chunk: Chunk) -> list[LoadedPicture]:
    """Pictures of the chunk's blocks that the vision tower has not seen, each once."""
    sequence, found = chunk.sequence, list[LoadedPicture]()
    for (start, end), picture in zip(sequence.prompt.blocks, sequence.pictures, strict=True):
        if chunk.start <= start and end <= chunk.end and not picture.encoded and picture not in found:
            found.append(picture)
    return found
