"""Prefill and decode attention kernels against plain loops in float64, over scattered pages in a cache of NaN.

Tolerance: as for the torch body (tests/kernels/test_attention.py) 2e-6 in float32, and as much again for powers of
two in place of exponentials. In bfloat16 and float16 weights and output are rounded once each; weights and values
that are rounded apart average out, so that the output's rounding bounds the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mdinfer.kernels import AttentionBatch, LayerCache
from mdinfer.kernels._triton import attention, decode_attention
from mdinfer.kernels._triton.launch import Target, recorded
from tests.kernels.attention_twin import FP8, Queries, causal, prompt, run
from tests.kernels.compare import store_error

FLOAT32 = 4e-6
PAGE = 16
NUMBERS = [torch.float32, torch.float16, torch.bfloat16]


def bound(dtype: torch.dtype) -> float:
    return FLOAT32 + (0.0 if dtype == torch.float32 else 2 * store_error(dtype))


def body(q: torch.Tensor, cache: LayerCache, batch: AttentionBatch) -> torch.Tensor:
    out = torch.empty_like(q)
    attention.prefill_attention(q, cache, batch, out)
    decode_attention.decode_attention(q, cache, batch, out)
    return out


@pytest.fixture(params=[1, 2, 8], ids=lambda n: f"splits{n}")
def splits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many programs share the chunks of a decoding sequence: some of them without one where it is short."""
    monkeypatch.setattr(decode_attention, "split_count", lambda *args: request.param)
    return int(request.param)


def decoding(*lengths: int) -> list[Queries]:
    return [causal(n - 1, n) for n in lengths]


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("stored", [None, FP8], ids=["plain", "fp8"])
@pytest.mark.parametrize("scattered", [True, False], ids=["scattered", "consecutive"])
def test_ragged_prompts_at_page_boundaries(
    scattered: bool, stored: torch.dtype | None, dtype: torch.dtype, device: torch.device
) -> None:
    sequences = [causal(0, n) for n in (15, 16, 17, 33, 2, 65)]
    found = run(body, sequences, K=64, dtype=dtype, stored=stored, scattered=scattered, device=device)
    assert found < bound(dtype)


@pytest.mark.parametrize("length", [729, 730, 731])
def test_an_image_block_sees_itself_in_both_directions(length: int, device: torch.device) -> None:
    sequence = prompt(-min(length, 730), *([1] if length > 730 else []))
    assert run(body, [sequence], slots=32, K=64, device=device) < FLOAT32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "sequence",
    [
        pytest.param(prompt(-21, 7, -20, 3), id="bos_joins_the_first"),
        pytest.param(prompt(-41, -40, 3), id="side_by_side"),
        pytest.param(prompt(5, -20, 1, -20), id="text_first_ends_in_a_block"),
        pytest.param(prompt(1, -1, 2, -1, 1), id="blocks_of_one"),
        pytest.param(prompt(30, -40, 50), id="a_block_across_tiles"),
        pytest.param(prompt(-21, 7, -20, 3, start=21), id="resumed_after_a_block"),
        pytest.param(prompt(-21, 7, -20, 3, start=25), id="resumed_in_text"),
        pytest.param(prompt(-21, 7, -20, 3, start=28), id="resumed_at_a_block"),
    ],
)
def test_blocks_and_resumed_prompts(sequence: Queries, dtype: torch.dtype, device: torch.device) -> None:
    found = run(body, [sequence, causal(0, 9), causal(70, 75)], slots=8, K=64, dtype=dtype, device=device)
    assert found < bound(dtype)


@pytest.mark.parametrize("slots", [1, 5, 64, 1024])
@pytest.mark.parametrize("K", [8, 24, 64, 160, 256])
def test_pages_and_heads_of_any_size(K: int, slots: int, device: torch.device) -> None:
    sequences = [causal(0, 12), prompt(1, -9, 4), *decoding(21, 70)]
    assert run(body, sequences, K=K, slots=slots, device=device) < FLOAT32


@pytest.mark.parametrize("stored", [None, FP8], ids=["plain", "fp8"])
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_decoding(splits: int, dtype: torch.dtype, stored: torch.dtype | None, device: torch.device) -> None:
    sequences = decoding(1, 2, PAGE - 1, PAGE, PAGE + 1, 127, 128, 129, 300)
    assert run(body, sequences, K=64, dtype=dtype, stored=stored, device=device) < bound(dtype)


@pytest.mark.parametrize("count", [1, 3, 17])
def test_any_number_of_decoding_sequences(count: int, splits: int, device: torch.device) -> None:
    assert run(body, decoding(*range(5, 5 + count)), K=64, device=device) < FLOAT32


def test_no_sequences(device: torch.device) -> None:
    assert run(body, [], K=64, device=device) == 0


@pytest.mark.parametrize("sequences", [[], decoding(7), [causal(0, 5), *decoding(9)]], ids=["alone", "one", "mixed"])
def test_rows_that_stand_for_nothing_are_zero(sequences: Sequence[Queries], splits: int, device: torch.device) -> None:
    assert run(body, sequences, K=64, empty=3, device=device) < FLOAT32


def test_a_nan_stays_in_its_sequence(device: torch.device) -> None:
    """One key that is not a number: the queries that see it give NaN, nobody else."""

    def broken(q: torch.Tensor, cache: LayerCache, batch: AttentionBatch) -> torch.Tensor:
        page = int(batch.pages[1, 0])
        cache.k[page, :, 3] = float("nan")
        out = body(q, cache, batch)
        second = out[5:9]
        assert second.isnan().all()
        out[5:9] = 0
        assert out.isfinite().all()
        return torch.zeros_like(q)

    run(broken, [causal(0, 5), causal(8, 12), *decoding(6, 7)], K=64, device=device)


def test_a_query_whose_scores_are_all_minus_infinity_has_no_answer(splits: int, device: torch.device) -> None:
    """As in the definition: zeros would hide that the model's numbers are unsound."""

    def broken(q: torch.Tensor, cache: LayerCache, batch: AttentionBatch) -> torch.Tensor:
        cache.k.fill_(float("-inf"))
        cache.v.fill_(1.0)
        assert body(torch.ones_like(q), cache, batch).isnan().all()
        return torch.zeros_like(q)

    run(broken, [causal(0, 5), *decoding(6, 70)], K=64, device=device)


@pytest.mark.parametrize("stored", [None, FP8], ids=["plain", "fp8"])
def test_a_decoding_sequence_is_the_same_in_any_batch(
    stored: torch.dtype | None, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Bit for bit: among others or alone, in a wider page table, and however its chunks are shared out."""

    def compared(q: torch.Tensor, cache: LayerCache, batch: AttentionBatch) -> torch.Tensor:
        wide = torch.zeros(1, 64, dtype=torch.int32, device=device)
        wide[:, : batch.pages.shape[1]] = batch.pages[1]
        alone = replace(
            batch, starts=batch.starts[:2] * 0, pages=wide, visible=batch.visible[-2:-1].clone(), queries=(1,)
        )
        found = []
        for splits in (1, 2, 3, 8):
            monkeypatch.setattr(decode_attention, "split_count", lambda *args, n=splits: n)
            found += [body(q, cache, batch)[-2], body(q[-2:-1], cache, alone)[0]]
        assert all(torch.equal(found[0], other) for other in found[1:])
        assert found[0].any()
        return torch.zeros_like(q)

    sequences = [causal(0, 5), causal(599, 600), causal(69, 70)]
    run(compared, sequences, K=64, stored=stored, device=device)


def launched(batch: int, positions: int, *, stored: torch.dtype = torch.bfloat16) -> list[tuple[int, ...]]:
    """Grids that a decoding batch of the real model starts on an H100."""
    meta = torch.device("meta")
    cache = torch.empty(8, 32, 32, 64, dtype=stored, device=meta)
    attention_batch = AttentionBatch(
        starts=torch.empty(batch + 1, dtype=torch.int32, device=meta),
        pages=torch.empty(batch, positions // 32, dtype=torch.int32, device=meta),
        visible=torch.empty(batch, dtype=torch.int32, device=meta),
        queries=(1,) * batch,
    )
    q = torch.empty(batch, 32, 64, dtype=torch.bfloat16, device=meta)
    with recorded(run=False, target=Target(capability=90, processors=132, shared=227 << 10)) as launches:
        body(q, LayerCache(k=cache, v=cache), attention_batch)
    return [launch.grid for launch in launches]


def test_chunks_are_shared_out_where_sequences_are_few() -> None:
    assert launched(1, 4096) == [(32, 1, 16), (32,)]
    assert launched(4, 4096) == [(32, 4, 4), (128,)]
    assert launched(64, 4096) == [(32, 64, 1)]
    assert launched(1, 256) == [(32, 1, 2), (32,)]
    assert launched(1, 128) == [(32, 1, 1)]
