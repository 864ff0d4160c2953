"""One running request as the scheduler and the runner see it: a prompt, what was sampled, the pages it holds.

The only mutable record of the engine's core. It knows no skill, no text and no tensor but its pictures' features.
"""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, field

from mdinfer.pictures import LoadedPicture
from mdinfer.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token with the values it carries: a coordinate in `value[0]`, or a size; meaningless for text.

    sound is False where the model's numbers were not finite and the token means nothing.
    """

    token: int
    kind: int
    value: tuple[float, float]
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    sound: bool = True


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """What was asked, then what became of it.

    prompt          with `pictures` for its images, in order
    state           of decoding (a State), after all tokens in `sampled`
    max_positions   bounds prompt and sampled tokens together
    namespace       sequences of different ones share nothing
    priority        smaller goes first
    arrival         its number in the order in which all were made; among equals the smaller goes first

    sampled         tokens read so far; the position of sampled[i] is len(prompt) + i
    pending         tokens sampled on the device, or about to be, that were not read yet
    in_flight       steps it takes part in that were not read yet
    planned         positions whose keys are in the cache, or will be after the steps in flight
    computed        positions whose keys are known to be in the cache and sound
    cached          positions that it found in the prefix cache when it first ran
    ids             identities of the prompt's and the sampled positions; empty where nothing is reused
    pages           in order of positions
    page_changes    counts the times when `pages` changed other than by growth at its end
    slot            in the batch, -1 while it does not run
    started         it ran before
    ended           finished or removed: the scheduler has forgotten it
    """

    prompt: Prompt
    state: int
    sampling: SamplingParams
    max_positions: int
    pictures: list[LoadedPicture] = field(default_factory=list)
    namespace: str = ""
    priority: int = 0
    arrival: int = field(default_factory=itertools.count().__next__)
    sampled: list[SampledToken] = field(default_factory=list)
    pending: int = 0
    in_flight: int = 0
    planned: int = 0
    computed: int = 0
    cached: int = 0
    ids: array[int] = field(default_factory=lambda: array("q"))
    pages: list[int] = field(default_factory=list)
    page_changes: int = 0
    slot: int = -1
    started: bool = False
    ended: bool = False

    @property
    def length(self) -> int:
        """Positions of the prompt and of all tokens read; the last one's key is not in the cache yet."""
        return len(self.prompt) + len(self.sampled)

    @property
    def rank(self) -> tuple[int, int]:
        """The smaller one runs first and is preempted last."""
        return self.priority, self.arrival
