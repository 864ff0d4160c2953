"""Work of fixed shapes recorded once as CUDA graphs and replayed: a step costs the host one launch.

On a CPU the same code runs on the same fixed buffers, but for the recording: each replay calls the function again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import torch

from mdinfer.kernels import Sampled
from mdinfer.model.vision import VisionTower
from mdinfer.page_tables import PageTables
from mdinfer.step_input import Needs, StepInput, decode_arrays, idle_arrays
from mdinfer.step_plan import StepPlan
from mdinfer.upload import Array, Packing, host_buffer

T = TypeVar("T")

Compute = Callable[[StepInput, Needs, torch.Tensor | None], tuple[Sampled | None, torch.Tensor | None]]

_MODES = ((True, False), (True, True), (False, True))  # text, values: answers, traces or mixtures, boxes and points


def bucket_sizes(most: int) -> list[int]:
    """1, 2, 4, 8, 16, then every 16, up to `most`, which is the last."""
    sizes = [size for size in (1, 2, 4, 8, *range(16, most, 16)) if size < most]
    return [*sizes, most]


class Recording(Generic[T]):
    """`function` reads and writes tensors that stay where they are; so does what it returns."""

    def __init__(self, function: Callable[[], T], device: torch.device, pool: GraphPool) -> None:
        self._function, self._graph = function, None
        if device.type == "cuda":
            self._graph, self._result = _captured(function, pool)

    def replay(self) -> T:
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return self._result


class GraphPool:
    """Memory that all graphs share: they never run at the same time, and what one returns is read before the next.

    They are recorded on one stream: libraries keep a workspace for each stream they have seen, 32 MiB on Hopper.
    """

    def __init__(self, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.handle = torch.cuda.graph_pool_handle() if cuda else None
        self.stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]  # torch types no __init__


class Mode(NamedTuple):
    rows: int
    text: bool
    values: bool

    @property
    def needs(self) -> Needs:
        return Needs(fed=self.values, text=self.text, values=self.values, draws=True, logprobs=None)


class DecodeGraphs:
    """Steps that only decode, filled up to the next bucket with rows that stand for nothing.

    `idle_slot` is the batch slot of those rows. Steps that ask for log-probabilities are not among them.
    """

    def __init__(
        self,
        compute: Compute,
        tables: PageTables,
        *,
        page_size: int,
        most: int,
        idle_slot: int,
        device: torch.device,
        pool: GraphPool,
    ) -> None:
        self.sizes = bucket_sizes(most)
        self._compute, self._tables, self._page_size, self._idle_slot = compute, tables, page_size, idle_slot
        self._device, self._pool = device, pool
        self._steps: dict[Mode, _FixedStep] = {}
        self._complete = False

    def record(self) -> Iterator[None]:
        """Record all there are, yielding after each; the largest first, for what it needs does for the others."""
        for rows in reversed(self.sizes):
            for text, values in _MODES:
                self._step(Mode(rows, text, values))
                yield
        self._complete = True

    @property
    def count(self) -> int:
        return len(self.sizes) * len(_MODES)

    def takes(self, plan: StepPlan, needs: Needs) -> bool:
        return not plan.prefill and needs.logprobs is None

    def run(self, plan: StepPlan, needs: Needs) -> tuple[Sampled | None, torch.Tensor | None]:
        """As the runner's own computation. The result changes with the next step: read, or copy, it at once."""
        rows = next(size for size in self.sizes if size >= len(plan.decode))
        step = self._step(Mode(rows, needs.text, needs.values or needs.fed))
        return step.run(decode_arrays(plan, self._tables, self._page_size, rows, self._idle_slot))

    def _step(self, mode: Mode) -> _FixedStep:
        if mode not in self._steps:
            assert not self._complete, f"{mode} was not recorded, and to do so now would halt all"
            arrays = idle_arrays(mode.rows, self._tables.width, self._idle_slot)
            self._steps[mode] = _FixedStep(self._compute, arrays, mode, self._device, self._pool)
        return self._steps[mode]


class _FixedStep:
    """A step whose numbers always lie at the same places."""

    def __init__(self, compute: Compute, idle: list[Array], mode: Mode, device: torch.device, pool: GraphPool) -> None:
        self._packing, self._device = Packing(idle), device
        self._buffer = torch.zeros(self._packing.nbytes, dtype=torch.uint8, device=device)
        self._fill(idle)  # the recording writes to no page but runs for real
        step = StepInput.of((1,) * mode.rows, self._packing.views(self._buffer), mode.needs)
        self._recording = Recording(lambda: compute(step, mode.needs, None), device, pool)

    def run(self, arrays: list[Array]) -> tuple[Sampled | None, torch.Tensor | None]:
        self._fill(arrays)
        return self._recording.replay()

    def _fill(self, arrays: list[Array]) -> None:
        host = host_buffer(self._packing.nbytes, self._device)
        self._packing.fill(host, arrays)
        self._buffer.copy_(host, non_blocking=True)


class VisionGraphs:
    """The vision tower on 1 .. `most` crops. One buffer does for all: a pass of fewer crops takes its beginning."""

    def __init__(self, tower: VisionTower, most: int, device: torch.device, pool: GraphPool) -> None:
        self._tower, self._most, self._device, self._pool = tower, most, device, pool
        config = tower.config
        self._crops = torch.zeros(most, config.crop_size, config.crop_size, 3, dtype=torch.uint8, device=device)
        self._features = torch.empty(most, config.positions, config.enc_dim, dtype=tower.pos_emb.dtype, device=device)
        self._passes: dict[int, Recording[torch.Tensor]] = {}

    def record(self) -> Iterator[None]:
        for count in range(self._most, 0, -1):
            self._pass(count)
            yield

    @property
    def count(self) -> int:
        return self._most

    def crop_features(self, crops: torch.Tensor) -> torch.Tensor:
        """As the tower's own, for crops (N, side, side, 3); more than `most` are not recorded."""
        count = len(crops)
        if count > self._most:
            return self._tower.crop_features(crops)
        self._crops[:count].copy_(crops)
        return self._pass(count).replay().clone()

    def _pass(self, count: int) -> Recording[torch.Tensor]:
        if count not in self._passes:
            crops, features = self._crops[:count], self._features[:count]
            self._passes[count] = Recording(
                lambda: features.copy_(self._tower.crop_features(crops)), self._device, self._pool
            )
        return self._passes[count]


def _captured(function: Callable[[], T], pool: GraphPool) -> tuple[torch.cuda.CUDAGraph, T]:
    """Run once beside, for kernels are compiled and libraries set up the first time, then record."""
    stream, here = pool.stream, torch.cuda.current_stream()
    assert stream is not None
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        function()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Threads that read pictures may allocate pinned memory meanwhile: only this one is held to the rules.
    with torch.cuda.graph(graph, pool=pool.handle, stream=stream, capture_error_mode="thread_local"):
        result = function()
    return graph, result
