"""What a step plan comes to in numbers: made on the host, moved in one copy, read by the model from then on.

Nothing here reads what an earlier step sampled: a decoding row is fed on the device, from its batch slot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mdinfer.decode_table import TEXT_STATES, VALUE_STATES
from mdinfer.kernels import Draws
from mdinfer.page_tables import PageTables
from mdinfer.sequence import Sequence
from mdinfer.step_plan import Chunk, StepPlan
from mdinfer.upload import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a step has to compute beside the decoder, for its rows as they may be when it runs.

    The states of a sequence that are not read yet are those that can follow the one it was last seen in; of a state
    in TEXT_STATES or VALUE_STATES, or of one in neither, these are alike in what is asked here.

    fed       a decoding row may be fed a coordinate or a size
    text      a row may choose plain text: all logits are needed
    values    a row may choose a coordinate or a size
    draws     a row is not greedy
    logprobs  how many likeliest tokens are wanted, None if not even the chosen one's log-probability is
    """

    fed: bool
    text: bool
    values: bool
    draws: bool
    logprobs: int | None

    @classmethod
    def of(cls, plan: StepPlan) -> Needs:
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        wanted = [s.sampling.logprobs for s in sampling if s.sampling.logprobs is not None]
        return cls(
            fed=any(chunk.sequence.state in VALUE_STATES for chunk in plan.decode),
            text=any(s.state in TEXT_STATES for s in sampling),
            values=any(s.state in VALUE_STATES for s in sampling),
            draws=any(s.sampling.temperature > 0 for s in sampling),
            logprobs=max(wanted, default=None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """Tensors are on the device.

    queries     rows of each chunk
    places      (3, T) int64: position, cache page (negative: nowhere) and slot there of each row
    visible     (T,) int32, keys that each row sees; 0 marks a row that stands for nothing
    starts      (chunks + 1,) int32, first row of each chunk, then T
    pages       (chunks, most pages of one) int32
    last        (S,) int64, rows that sample
    slots       (S,) int64, their batch slots
    feeding     (D,) int64, batch slots of the decoding rows, which come last
    tokens, kinds, values    of the rows before, (T - D,) int64 and (T - D, 2) float32
    states      (F,) int64, of the first F rows that sample: those that were not decoding
    draws       None where every row is greedy
    """

    queries: tuple[int, ...]
    places: torch.Tensor
    visible: torch.Tensor
    starts: torch.Tensor
    pages: torch.Tensor
    last: torch.Tensor
    slots: torch.Tensor
    feeding: torch.Tensor
    tokens: torch.Tensor
    kinds: torch.Tensor
    values: torch.Tensor
    states: torch.Tensor
    draws: Draws | None

    @classmethod
    def of(cls, queries: tuple[int, ...], tensors: list[torch.Tensor], needs: Needs) -> StepInput:
        """From the arrays of `step_arrays`, moved to the device."""
        places, visible, starts, pages, last, slots, feeding, tokens, kinds, values, states, shape, chance = tensors
        draws = Draws(temperature=shape[0], top_p=shape[1], seeds=chance[0], steps=chance[1])
        return cls(
            queries=queries,
            places=places,
            visible=visible,
            starts=starts,
            pages=pages,
            last=last,
            slots=slots,
            feeding=feeding,
            tokens=tokens,
            kinds=kinds,
            values=values,
            states=states,
            draws=draws if needs.draws else None,
        )


def step_arrays(plan: StepPlan, tables: PageTables, page_size: int) -> list[Array]:
    """Arrays for `StepInput.of`, in its order; temperature and top_p (2, S), seeds and steps (2, S) come last."""
    chunks = plan.chunks
    sampling = [chunk for chunk in chunks if chunk.samples]
    pages = tables.rows([chunk.sequence for chunk in chunks])
    starts = np.cumsum([0, *(chunk.end - chunk.start for chunk in chunks)], dtype=np.int32)
    tokens, kinds, values = _known(plan.prefill)
    fresh = [int(chunk.sequence.state) for chunk in plan.prefill if chunk.samples]
    return [
        *_rows(plan, pages, page_size),
        starts,
        pages,
        (starts[1:][[chunk.samples for chunk in chunks]] - 1).astype(np.int64),
        np.array([chunk.sequence.slot for chunk in sampling], dtype=np.int64),
        np.array([chunk.sequence.slot for chunk in plan.decode], dtype=np.int64),
        tokens,
        kinds,
        values,
        np.array(fresh, dtype=np.int64),
        *draw_arrays((chunk.sequence, chunk.end) for chunk in sampling),
    ]


def decode_arrays(plan: StepPlan, tables: PageTables, page_size: int, rows: int, idle_slot: int) -> list[Array]:
    """As `step_arrays` of a plan that only decodes, filled up to `rows` rows with those of `idle_arrays`."""
    real, count = step_arrays(plan, tables, page_size), len(plan.decode)
    arrays = idle_arrays(rows, tables.width, idle_slot)
    places, visible, _, pages, _, slots, feeding, *known = arrays
    places[:, :count], visible[:count] = real[0], real[1]
    pages[:count, : real[3].shape[1]] = real[3]
    slots[:count] = feeding[:count] = real[5]
    for whole, part in zip(known[-2:], real[-2:], strict=True):
        whole[:, :count] = part
    return arrays


def idle_arrays(rows: int, width: int, idle_slot: int) -> list[Array]:
    """Arrays of `rows` decoding rows that stand for nothing: they write nowhere, see nothing, share one batch slot."""
    slots = np.full(rows, idle_slot, dtype=np.int64)
    return [
        np.repeat(np.array([[0], [-1], [0]], dtype=np.int64), rows, axis=1),
        np.zeros(rows, dtype=np.int32),
        np.arange(rows + 1, dtype=np.int32),
        np.zeros((rows, width), dtype=np.int32),
        np.arange(rows, dtype=np.int64),
        slots,
        slots.copy(),
        np.empty(0, dtype=np.int64),
        np.empty(0, dtype=np.int64),
        np.empty((0, 2), dtype=np.float32),
        np.empty(0, dtype=np.int64),
        np.repeat(np.array([[0], [1]], dtype=np.float32), rows, axis=1),
        np.zeros((2, rows), dtype=np.int64),
    ]


def draw_arrays(rows: Iterable[tuple[Sequence, int]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Of sequences and the positions that they sample: temperature and top_p, seed and number of the token."""
    numbers = [(s.sampling.temperature, s.sampling.top_p, s.sampling.seed, at - len(s.prompt)) for s, at in rows]
    temperature, top_p, seeds, steps = zip(*numbers, strict=True) if numbers else ((), (), (), ())
    return np.array([temperature, top_p], dtype=np.float32), np.array([seeds, steps], dtype=np.int64)


def _rows(plan: StepPlan, pages: npt.NDArray[np.int32], size: int) -> tuple[Array, Array]:
    """places and visible."""
    positions, seen, owners = [], [], []
    for i, (sequence, start, end, *_) in enumerate(plan.prefill):
        position = np.arange(start, end)
        visible = position + 1
        asked = sequence.prompt.visible[start:end]
        visible[: len(asked)] = asked
        positions.append(position)
        seen.append(visible)
        owners.append(np.full(end - start, i))
    if plan.decode:
        position = np.array([chunk.start for chunk in plan.decode])
        positions.append(position)
        seen.append(position + 1)
        owners.append(np.arange(len(plan.prefill), len(plan.prefill) + len(position)))
    position = np.concatenate(positions)
    page = pages[np.concatenate(owners), position // size]
    return np.stack((position, page, position % size)), np.concatenate(seen).astype(np.int32)


def _known(prefill: Iterable[Chunk]) -> tuple[Array, Array, Array]:
    """Tokens, kinds and values of all chunks, of prompts and of what was sampled after them."""
    tokens, kinds, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty((0, 2), np.float32)]
    for sequence, start, end, *_ in prefill:
        prompt, asked = sequence.prompt, len(sequence.prompt)
        tokens.append(prompt.tokens[start:end])
        kinds.append(prompt.kinds[start:end])
        values.append(prompt.values[start:end])
        if end > asked:
            sampled = sequence.sampled[max(0, start - asked) : end - asked]
            tokens.append(np.array([t.token for t in sampled], dtype=np.int64))
            kinds.append(np.array([t.kind for t in sampled], dtype=np.int64))
            values.append(np.array([t.value for t in sampled], dtype=np.float32).reshape(-1, 2))
    return np.concatenate(tokens), np.concatenate(kinds), np.concatenate(values)
