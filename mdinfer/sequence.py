"""One running request as the scheduler and the runner see it: a prompt, what was sampled, the pages it holds.

The only mutable record of the engine's core. It knows no skill, no text and no tensor but its pictures' features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mdinfer.decode_table import State
from mdinfer.prompts import Prompt

if TYPE_CHECKING:
    import torch

    from mdinfer.image import Crops


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
    """state is where decoding starts; max_positions bounds prompt and sampled tokens together, and pages for all
    of them are taken on admission.

    pictures are Crops until the vision tower has turned them into features (positions, D).
    """

    prompt: Prompt
    state: State
    sampling: SamplingParams
    max_positions: int
    pictures: list[Crops | torch.Tensor] = field(default_factory=list)
    sampled: list[SampledToken] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    slot: int = -1

    @property
    def length(self) -> int:
        """Positions of the prompt and of all sampled tokens; the last one's key is not in the cache yet."""
        return len(self.prompt) + len(self.sampled)
