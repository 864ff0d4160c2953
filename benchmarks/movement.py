"""A model on meta, and what the steps that it goes through move, by what each start of a kernel is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.costs import distinct_experts
from benchmarks.precisions import EXPERT_TYPES, LINEAR_TYPES
from benchmarks.trace import Start, Trace, storage_of, traced
from mdinfer.config import ModelConfig
from mdinfer.model.batch import KVCache
from mdinfer.model.moe import ExpertMlp
from mdinfer.model.moondream import Moondream
from mdinfer.step_plan import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Bytes of a step: weights read; keys and values read and written; activations."""

    weights: float
    cache: float
    activations: float


class TracedModel:
    """`marks` says how many starts there had been by the time each block of the decoder, or of the tower, began."""

    def __init__(self, config: ModelConfig, experts: str, linears: str) -> None:
        self.model = Moondream(
            config,
            dtype=torch.bfloat16,
            expert_dtype=EXPERT_TYPES[experts],
            linear_dtype=LINEAR_TYPES[linears],
            device=torch.device("meta"),
        )
        self._experts = {
            storage_of(tensor)
            for layer in self.model.modules()
            if isinstance(layer, ExpertMlp)
            for name, tensor in layer.named_parameters()
            if not name.startswith("router")
        }
        self._weights = {storage_of(tensor) for tensor in self.model.parameters()}
        self._unread = {
            storage_of(tensor) for encoder in self.model.region.encoders() for tensor in vars(encoder).values()
        }
        self._tables = {storage_of(self.model.text.wte), storage_of(self.model.text.rope)}
        self.marks: list[int] = []
        self._trace: Trace | None = None
        blocks = [*self.model.text.blocks, *self.model.vision.blocks]
        for block in blocks:
            block.register_forward_pre_hook(self._mark)

    def _mark(self, *_: Any) -> None:
        if self._trace is not None:
            self._trace.drain()
            self.marks.append(len(self._trace.starts))

    @contextmanager
    def tracing(self) -> Iterator[Trace]:
        self.marks.clear()
        with traced() as trace, torch.inference_mode():
            self._trace = trace
            yield trace
        self._trace = None

    def layer(self, number: int) -> int:
        """Starts of a layer of those that the last trace came through, with what joins it to the next."""
        return self.marks[number + 1] - self.marks[number]

    def moved(self, starts: list[Start], rows: int, plan: StepPlan | None, cache: KVCache | None) -> Moved:
        moe = self.model.config.text.moe
        share = distinct_experts(rows, moe.num_experts, moe.experts_per_token) / moe.num_experts
        kept = set() if cache is None else {storage_of(t) for layer in cache.layers for t in (layer.k, layer.v)}
        if cache is not None and cache.k_scale is not None and cache.v_scale is not None:
            kept |= {storage_of(cache.k_scale), storage_of(cache.v_scale)}
        weights = held = activations = 0.0
        for start in starts:
            stored = False
            for tensor in _distinct(start):
                place, size = storage_of(tensor), float(tensor.nbytes)
                if place in kept and cache is not None and plan is not None:
                    if start.name == "copy_pages_kernel":  # all layers of a page, read and written
                        held += 2 * len(plan.copies) * size / cache.k.shape[1]
                    stored = start.name != "copy_pages_kernel"
                elif place in self._unread:
                    pass  # no row is a coordinate or a size
                elif place in self._tables:
                    weights += rows * tensor.shape[-1] * tensor.itemsize * (place in self._weights)
                elif place in self._weights:
                    weights += size * (share if place in self._experts else 1)
                elif start.picks and tensor is start.tensors[0]:
                    activations += sum(result.nbytes for result in start.results)
                else:
                    activations += size
            if stored and cache is not None and plan is not None:
                held += _positions(start, plan) * cache.nbytes / cache.k[:, :, 0, :, 0].numel()
        return Moved(weights=weights, cache=held, activations=activations)


def _distinct(start: Start) -> list[torch.Tensor]:
    found = {(storage_of(t), t.storage_offset(), t.shape): t for t in (*start.tensors, *start.results)}
    return list(found.values())


def _positions(start: Start, plan: StepPlan) -> int:
    """Of one layer's cache that a start moves: what it writes, or what was there before the step."""
    if start.name == "qkv_write_kernel":
        return sum(chunk.end - chunk.start for chunk in plan.chunks)
    return sum(chunk.start for chunk in plan.chunks)
