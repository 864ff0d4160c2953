"""A step on its way: launched on the device, to be read by the host when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mdinfer.kernels import Sampled
from mdinfer.sequence import SampledToken, Sequence


class Stopwatch:
    """Seconds between two moments of the device's own time; on a CPU, which works while it is called, of the host's."""

    def __init__(self, device: torch.device) -> None:
        self._events = [_event(timed=True) for _ in range(2)] if device.type == "cuda" else None
        self._began = self._ended = 0.0

    def start(self) -> None:
        if self._events is None:
            self._began = time.perf_counter()
        else:
            self._events[0].record()

    def stop(self) -> None:
        if self._events is None:
            self._ended = time.perf_counter()
        else:
            self._events[1].record()

    def seconds(self) -> float:
        """After the device has come past `stop`."""
        if self._events is None:
            return self._ended - self._began
        return float(self._events[0].elapsed_time(self._events[1])) / 1000


@dataclass(frozen=True, slots=True)
class Landing:
    """What a step came to: a token for each chunk that samples, and the seconds that the vision tower took of it."""

    tokens: list[SampledToken]
    vision_s: float = 0.0


class Flight:
    """Made right after the launch, so that what comes later on the device does not change what is read."""

    def __init__(
        self,
        sequences: list[Sequence],
        chosen: Sampled | None,
        values: torch.Tensor | None,
        device: torch.device,
        vision: Stopwatch | None,
    ) -> None:
        self._sequences, self._vision = sequences, vision
        self._copies = None if chosen is None else _host_copies(chosen, values)
        self._landed: Callable[[], object] | None = None
        if device.type == "cuda":
            event = _event(timed=False)
            event.record()
            self._landed = event.synchronize

    def read(self) -> Landing:
        """Wait for the step. Raises what failed on the device."""
        if self._landed is not None:
            self._landed()
        tokens = [] if self._copies is None else _sampled_tokens(self._sequences, *self._copies)
        return Landing(tokens, 0.0 if self._vision is None else self._vision.seconds())


def _event(*, timed: bool) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]  # torch types no __init__


def _host_copies(chosen: Sampled, values: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    parts = (chosen.choice, values, chosen.logprobs, chosen.top_tokens, chosen.top_logprobs)
    return tuple(None if part is None else _host_copy(part) for part in parts)


def _host_copy(part: torch.Tensor) -> torch.Tensor:
    if part.device.type == "cpu":
        return part.clone()
    return torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True)


def _sampled_tokens(sequences: list[Sequence], *copies: torch.Tensor | None) -> list[SampledToken]:
    """Of the first rows; a padded step has more."""
    choice, values, logprobs, top_tokens, top_logprobs = (None if c is None else c.tolist() for c in copies)
    assert choice is not None
    tokens, kinds, _, sound = choice
    out = []
    for i, sequence in enumerate(sequences):
        wanted = sequence.sampling.logprobs
        top: tuple[tuple[int, float], ...] = ()
        if wanted and top_tokens is not None and top_logprobs is not None:
            top = tuple(zip(top_tokens[i][:wanted], top_logprobs[i][:wanted], strict=True))
        out.append(
            SampledToken(
                tokens[i],
                kinds[i],
                (0.0, 0.0) if values is None else (values[i][0], values[i][1]),
                logprobs[i] if logprobs is not None and wanted is not None else None,
                top,
                bool(sound[i]),
            )
        )
    return out
