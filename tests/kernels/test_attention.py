"""Paged attention against plain loops in float64, over scattered pages in a cache of NaN.

Tolerance: a float32 dot product of K terms errs by about sqrt(K) 2^-24 of its size, 5e-7 for K = 64; the softmax
carries the scores' absolute error (they are below 10) into its weights, and the sum over values averages it: 2e-6 of
the output's RMS. In bfloat16 the output alone is rounded by 2^-9, the weights before it too: 1e-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mdinfer.kernels import AttentionBatch, paged_attention
from tests.kernels.compare import Array, randn, rms_ratio, to_array

FLOAT32, BFLOAT16 = 2e-6, 1e-2
H = 2


@dataclass(frozen=True)
class Queries:
    """One sequence: the keys that each of its queries sees."""

    visible: tuple[int, ...]

    @property
    def length(self) -> int:
        return max(self.visible)


def causal(start: int, end: int) -> Queries:
    """Queries at positions start .. end - 1."""
    return Queries(tuple(range(start + 1, end + 1)))


def prompt(*parts: int, start: int = 0) -> Queries:
    """A prompt of text (positive counts) and image blocks (negative ones), from position `start` on."""
    visible: list[int] = []
    for part in parts:
        at = len(visible)
        visible += [at - part] * -part if part < 0 else range(at + 1, at + part + 1)
    return Queries(tuple(visible[start:]))


def twin(q: Array, k: Array, v: Array, sequences: Sequence[Queries], pages: list[list[int]]) -> Array:
    out, row, slots = np.empty_like(q), 0, k.shape[2]
    for sequence, mine in zip(sequences, pages, strict=True):
        for seen in sequence.visible:
            for h in range(q.shape[1]):
                keys = np.stack([k[mine[j // slots], h, j % slots] for j in range(seen)])
                values = np.stack([v[mine[j // slots], h, j % slots] for j in range(seen)])
                scores = keys @ q[row, h] / q.shape[2] ** 0.5
                weights = np.exp(scores - scores.max())
                out[row, h] = weights @ values / weights.sum()
            row += 1
    return out


def cache(pages: int, slots: int, K: int, dtype: torch.dtype, slots_first: bool) -> torch.Tensor:
    """(P, H, L, K) of NaN, with heads or slots first in memory."""
    if slots_first:
        return torch.full((pages, slots, H, K), float("nan"), dtype=dtype).transpose(1, 2)
    return torch.full((pages, H, slots, K), float("nan"), dtype=dtype)


def run(
    sequences: Sequence[Queries],
    *,
    slots: int = 16,
    K: int = 16,
    slots_first: bool = True,
    dtype: torch.dtype = torch.float32,
    scattered: bool = True,
) -> float:
    """RMS error ratio; slots that no sequence has filled, and whole pages, stay NaN."""
    counts = [-(-s.length // slots) for s in sequences]
    total = sum(counts) + 3
    order = torch.randperm(total, generator=torch.Generator().manual_seed(7)).tolist()
    order = order if scattered else list(range(total))
    pages = [[order.pop() if scattered else order.pop(0) for _ in range(count)] for count in counts]
    T = sum(len(s.visible) for s in sequences)
    q = randn(T, H, K, seed=1).to(dtype)
    k, v = (cache(total, slots, K, dtype, slots_first) for _ in "kv")
    for i, (sequence, mine) in enumerate(zip(sequences, pages, strict=True)):
        for j in range(sequence.length):
            k[mine[j // slots], :, j % slots] = randn(H, K, seed=1000 * i + j, scale=1.5).to(dtype)
            v[mine[j // slots], :, j % slots] = randn(H, K, seed=1000 * i + j + 500_000).to(dtype)
    table = torch.full((len(pages), max(counts) + 2), 10**6, dtype=torch.int32)  # entries nobody may read
    for row, mine in zip(table, pages, strict=True):
        row[: len(mine)] = torch.tensor(mine)
    batch = AttentionBatch(
        starts=torch.tensor(np.cumsum([0, *(len(s.visible) for s in sequences)]), dtype=torch.int32),
        pages=table,
        visible=torch.tensor([n for s in sequences for n in s.visible], dtype=torch.int32),
    )
    found = paged_attention(q, k, v, batch)
    assert found.dtype == dtype
    return rms_ratio(found, twin(to_array(q), to_array(k), to_array(v), sequences, pages))


@pytest.mark.parametrize("slots_first", [True, False], ids=["slots_first", "heads_first"])
@pytest.mark.parametrize("scattered", [True, False], ids=["scattered", "consecutive"])
def test_ragged_causal_prompts_at_page_boundaries(slots_first: bool, scattered: bool) -> None:
    sequences = [causal(0, n) for n in (15, 16, 17, 1, 32, 33, 31)]
    assert run(sequences, slots_first=slots_first, scattered=scattered) < FLOAT32


@pytest.mark.parametrize("slots", [1, 5, 64])
def test_pages_of_any_size(slots: int) -> None:
    assert run([causal(0, 12), prompt(1, -9, 4), causal(20, 21)], slots=slots) < FLOAT32


@pytest.mark.parametrize("slots_first", [True, False], ids=["slots_first", "heads_first"])
@pytest.mark.parametrize("length", [729, 730, 731])
def test_an_image_block_sees_itself_in_both_directions(length: int, slots_first: bool) -> None:
    """All of a block of 729, then of BOS and image as one of 730, then with a text token after it."""
    sequence = prompt(-min(length, 730), *([1] if length > 730 else []))
    assert run([sequence], slots=32, slots_first=slots_first) < FLOAT32


@pytest.mark.parametrize(
    "sequence",
    [
        pytest.param(prompt(-21, 7, -20, 3), id="bos_joins_the_first"),
        pytest.param(prompt(-21, -20, 3), id="side_by_side"),
        pytest.param(prompt(5, -20, 1, -20), id="text_first_ends_in_a_block"),
        pytest.param(prompt(1, -1, 2, -1, 1), id="blocks_of_one"),
    ],
)
def test_two_image_blocks(sequence: Queries) -> None:
    assert run([sequence, causal(0, 9)], slots=8) < FLOAT32


@pytest.mark.parametrize("start", [1, 15, 16, 17, 30])
def test_queries_that_start_late_see_the_keys_before_them(start: int) -> None:
    assert run([causal(start, 40), causal(0, 5)]) < FLOAT32


@pytest.mark.parametrize("start", [21, 25, 28, 48], ids=["after_block", "in_text", "at_block", "last_text"])
def test_a_resumed_prompt_with_blocks(start: int) -> None:
    assert run([prompt(-21, 7, -20, 3, start=start)]) < FLOAT32


def test_decode_rows() -> None:
    assert run([causal(n - 1, n) for n in (1, 2, 15, 16, 17, 100)]) < FLOAT32


@pytest.mark.parametrize("slots_first", [True, False], ids=["slots_first", "heads_first"])
def test_prefills_and_decodes_together(slots_first: bool) -> None:
    sequences = [prompt(-21, 7), causal(0, 12), causal(40, 41), prompt(4, -20, 2), causal(16, 17), causal(9, 14)]
    assert run(sequences, K=64, slots_first=slots_first) < FLOAT32


def test_bfloat16() -> None:
    sequences = [prompt(-21, 7), causal(0, 12), causal(40, 41)]
    assert run(sequences, K=64, dtype=torch.bfloat16) < BFLOAT16


def test_a_sequence_without_queries_is_passed_over() -> None:
    """starts may stand still: that row of the page table is not read."""
    k = randn(2, H, 4, 8)
    batch = AttentionBatch(
        starts=torch.tensor([0, 0, 1], dtype=torch.int32),
        pages=torch.tensor([[9], [1]], dtype=torch.int32),
        visible=torch.tensor([1], dtype=torch.int32),
    )
    out = paged_attention(randn(1, H, 8), k, k, batch)
    assert torch.allclose(out[0], k[1, :, 0], rtol=0, atol=1e-6)
