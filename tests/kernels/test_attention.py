"""Paged attention against plain loops in float64, over scattered pages in a cache of NaN.

Tolerance: a float32 dot product of K terms errs by about sqrt(K) 2^-24 of its size, 5e-7 for K = 64; the softmax
carries the scores' absolute error (they are below 10) into its weights, and the sum over values averages it: 2e-6 of
the output's RMS. In bfloat16 the output alone is rounded by 2^-9, the weights before it too: 1e-2.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mdinfer.kernels import AttentionBatch, LayerCache, paged_attention
from tests.kernels.attention_twin import FP8, H, Queries, causal, prompt
from tests.kernels.attention_twin import run as run_body
from tests.kernels.compare import randn

FLOAT32, BFLOAT16 = 2e-6, 1e-2
run = partial(run_body, paged_attention)


@pytest.mark.parametrize("scattered", [True, False], ids=["scattered", "consecutive"])
def test_ragged_causal_prompts_at_page_boundaries(scattered: bool) -> None:
    sequences = [causal(0, n) for n in (15, 16, 17, 1, 32, 33, 31)]
    assert run(sequences, scattered=scattered) < FLOAT32


@pytest.mark.parametrize("slots", [1, 5, 64])
def test_pages_of_any_size(slots: int) -> None:
    assert run([causal(0, 12), prompt(1, -9, 4), causal(20, 21)], slots=slots) < FLOAT32


@pytest.mark.parametrize("length", [729, 730, 731])
def test_an_image_block_sees_itself_in_both_directions(length: int) -> None:
    """All of a block of 729, then of BOS and image as one of 730, then with a text token after it."""
    sequence = prompt(-min(length, 730), *([1] if length > 730 else []))
    assert run([sequence], slots=32) < FLOAT32


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


def test_prefills_and_decodes_together() -> None:
    sequences = [prompt(-21, 7), causal(0, 12), causal(40, 41), prompt(4, -20, 2), causal(16, 17), causal(9, 14)]
    assert run(sequences, K=64) < FLOAT32


def test_bfloat16() -> None:
    sequences = [prompt(-21, 7), causal(0, 12), causal(40, 41)]
    assert run(sequences, K=64, dtype=torch.bfloat16) < BFLOAT16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_and_values_in_fp8(dtype: torch.dtype) -> None:
    """The twin reads the same stored numbers, so that their rounding is not an error."""
    sequences = [prompt(-21, 7), causal(0, 12), causal(40, 41)]
    assert run(sequences, K=64, dtype=dtype, stored=FP8) < (FLOAT32 if dtype == torch.float32 else BFLOAT16)


@pytest.mark.parametrize("sequences", [[], [causal(0, 5), causal(8, 9)]], ids=["alone", "behind_others"])
def test_rows_that_stand_for_nothing_are_zero(sequences: list[Queries]) -> None:
    assert run(sequences, empty=3) < FLOAT32


def test_decoding_sequences_are_those_at_the_end_with_one_query() -> None:
    def batch(*queries: int) -> AttentionBatch:
        T, S = sum(queries), len(queries)
        starts, visible = torch.zeros(S + 1, dtype=torch.int32), torch.ones(T, dtype=torch.int32)
        return AttentionBatch(
            starts=starts, pages=torch.zeros(S, 1, dtype=torch.int32), visible=visible, queries=queries
        )

    assert [batch(*queries).decoding for queries in ((1, 1), (3, 1, 1), (1, 3), (1, 2, 1), ())] == [2, 2, 0, 1, 0]
    assert batch(1, 5, 0, 2, 1).tiles(2).tolist() == [[0, 0], [1, 1], [1, 3], [1, 5], [3, 6]]
    assert batch(1, 1).tiles(2).shape == (0, 2)


def test_a_sequence_without_queries_is_passed_over() -> None:
    """starts may stand still: that row of the page table is not read."""
    k = randn(2, H, 4, 8)
    batch = AttentionBatch(
        starts=torch.tensor([0, 0, 1], dtype=torch.int32),
        pages=torch.tensor([[9], [1]], dtype=torch.int32),
        visible=torch.tensor([1], dtype=torch.int32),
        queries=(0, 1),
    )
    out = paged_attention(randn(1, H, 8), LayerCache(k=k, v=k), batch)
    assert torch.allclose(out[0], k[1, :, 0], rtol=0, atol=1e-6)
