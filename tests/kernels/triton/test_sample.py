"""The sampler's kernels against the torch body where the outcome is exact, and draws against float64.

Tolerance: a mass errs by the rounding of its exponent, up to 20 * 2^-24 of itself where it counts, and by 2^-40 of the
peak's; the float32 uniform number and top_p are taken as they are. A draw within 1e-6 of the end of a token's stretch
of the unit interval, or a nucleus within 1e-6 of its edge, may go either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mdinfer.config import TokenConfig
from mdinfer.decode_table import State, decode_table
from mdinfer.kernels import DecodeTable, Draws, Sampled, uniform
from mdinfer.kernels._triton import sample as compiled
from mdinfer.kernels._triton.launch import launch
from mdinfer.kernels.sample import CONTROL_IDS, sample_torch
from tests.kernels.compare import Array, randn, to_array
from tests.kernels.triton.jit import uniform_kernel

TABLE = decode_table(TokenConfig())
LAST = 1 - 2**-24
EDGE = 1e-6
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def choose(
    logits: torch.Tensor, states: Sequence[int], draws: Draws | None = None, logprobs: int | None = None
) -> tuple[Sampled, Sampled]:
    """Of the kernels on the logits' device, and of the torch body on the CPU."""
    device = logits.device

    def move(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.to(device)

    moved = draws and Draws(
        temperature=draws.temperature.to(device),
        top_p=draws.top_p.to(device),
        uniform=move(draws.uniform),
        seeds=move(draws.seeds),
        steps=move(draws.steps),
    )
    rows = torch.tensor([int(state) for state in states])
    found = compiled.sample(logits.clone(), rows.to(device), TABLE.to(device), moved, logprobs)
    return found, sample_torch(logits.cpu().clone(), rows, TABLE, draws, logprobs)


def drawing(B: int, temperature: float, top_p: float | list[float], u: float | list[float]) -> Draws:
    def column(value: float | list[float]) -> torch.Tensor:
        return torch.as_tensor(value, dtype=torch.float32).expand(B)

    return Draws(temperature=column(temperature), top_p=column(top_p), uniform=column(u))


def mixed_states(B: int, V: int) -> list[int]:
    """All states in turn; with nothing but control ids, those that allow no plain text."""
    return [i % len(State) if V > CONTROL_IDS else 2 + i % 5 for i in range(B)]


def allowed_logits(logits: torch.Tensor, states: Sequence[int]) -> Array:
    rows = to_array(logits)
    ids = np.minimum(np.arange(rows.shape[1]), CONTROL_IDS)
    allowed: Array = np.where(TABLE.allowed.numpy()[list(states)][:, ids], rows, -np.inf)
    return allowed


def assert_drawn(token: int, row: Array, temperature: float, top_p: float, u: float) -> None:
    """`token` is the one at which the nucleus's running sum passes u, of the sorted row in float64."""
    odds = np.exp((row - row.max()) / temperature)
    order = np.argsort(-row, kind="stable") if top_p < 1 else np.arange(len(row))
    shares = odds[order] / odds.sum()
    before = np.cumsum(shares) - shares
    ends = [before <= top_p + shift for shift in (-EDGE, EDGE)] if top_p < 1 else [np.ones(len(row), dtype=bool)]
    place = int(np.nonzero(order == token)[0][0])
    for kept in ends:
        if not kept.any():
            kept[0] = True
        total = shares[kept].sum()
        if (
            kept[place]
            and shares[place] > 0
            and before[place] - EDGE <= u * total < before[place] + shares[place] + EDGE
        ):
            return
    raise AssertionError(f"{token} at place {place}, which has {before[place]} + {shares[place]}, for {u} of {total}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "V"), [(1, 16), (17, 50), (7, 1024), (1, 1025), (3, 2700)])
def test_greedy_in_every_state(B: int, V: int, dtype: torch.dtype, device: torch.device) -> None:
    """Of rounded logits, so that ties are many."""
    logits = randn(B, V, scale=3.0, seed=B).round().to(device, dtype)
    found, want = choose(logits, mixed_states(B, V), logprobs=None if B == 1 else 0)
    assert torch.equal(found.choice.cpu(), want.choice)


@pytest.mark.parametrize("V", [16, 2700])
def test_a_tie_goes_to_the_lower_id_or_on(V: int, device: torch.device) -> None:
    states = [0, 1, 2, 3, 4, 5, 6] if V > CONTROL_IDS else [2, 3, 4, 5, 6]
    rows = torch.zeros(len(states), V)
    rows[0, 3] = 5.0  # barred there
    rows[1:, 0] = -0.0
    found, want = choose(rows.to(device), states)
    assert torch.equal(found.choice.cpu(), want.choice)
    last = rows.clone()
    last[:, V - 1] = 1.0
    found, want = choose(last.to(device), states)
    assert torch.equal(found.choice.cpu(), want.choice)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("V", "scale"), [(16, 2.0), (1025, 4.0), (2700, 0.3)])
def test_draws_from_nuclei_of_all_widths(V: int, scale: float, dtype: torch.dtype, device: torch.device) -> None:
    """In 16 bits many logits are equal, so that the edge and the draw often lie within a tie."""
    B = 10
    logits = randn(B, V, scale=scale, seed=V).to(device, dtype)
    top_p = [1.0, 0.999, *torch.linspace(0, 0.99, B - 2).tolist()]
    u = [0.0, LAST, *uniform(torch.arange(B - 2), torch.full((B - 2,), 5)).tolist()]
    states = mixed_states(B, V)
    found, _ = choose(logits, states, drawing(B, 0.8, top_p, u))
    for token, row, p, number in zip(found.tokens.tolist(), allowed_logits(logits, states), top_p, u, strict=True):
        assert_drawn(token, row, np.float32(0.8), np.float32(p), np.float32(number))
    column = found.tokens.cpu().clamp(max=CONTROL_IDS)
    assert torch.equal(found.kinds.cpu(), TABLE.kinds[states, column])
    assert torch.equal(found.states.cpu(), TABLE.follows[states, column])


def test_the_unit_interval_lays_out_the_nucleus(device: torch.device) -> None:
    """One row at 20 numbers: the stretches follow each other from the likeliest token to the last kept."""
    row, count = randn(1, 200, scale=1.5, seed=3).to(torch.bfloat16), 20
    u = [*(torch.arange(count - 1) / (count - 1)).tolist(), LAST]
    for top_p in (0.7, 1.0):
        found, want = choose(row.expand(count, -1).contiguous().to(device), [0] * count, drawing(count, 1.0, top_p, u))
        for token, number in zip(found.tokens.tolist(), u, strict=True):
            assert_drawn(token, allowed_logits(row, [0])[0], 1.0, np.float32(top_p), np.float32(number))
        assert (found.tokens.cpu() == want.tokens).float().mean() > 0.9


@pytest.mark.parametrize("V", [100, 2700])
def test_equal_logits_are_laid_out_by_id(V: int, device: torch.device) -> None:
    """All equal, be it as two kinds of zero: the nucleus is the lower half of the ids, a draw its share of them."""
    B = 5
    u = [i / B for i in range(B)]
    logits = torch.zeros(B, V, device=device)
    logits[:, ::2] = -0.0
    logits[:, 3] = -100.0
    found, _ = choose(logits, [1] * B, drawing(B, 1.0, 0.5 - 0.25 / V, u))
    ids = [i for i in range(V) if i not in (0, 3, 6)]
    kept = ids[: len(ids) // 2 + 1]
    want = [int(number * len(kept)) for number in u]
    assert all(abs(kept.index(token) - place) <= 1 for token, place in zip(found.tokens.tolist(), want, strict=True))


def test_a_row_is_drawn_as_if_alone(device: torch.device) -> None:
    B, V = 6, 1500
    logits = randn(B, V, seed=5).to(device, torch.bfloat16)
    top_p, u = [0.3, 1.0, 0.9, 0.99, 0.7, 0.0], [0.1, 0.3, 0.5, 0.7, 0.9, LAST]
    draws = drawing(B, 1.3, top_p, u)
    together, _ = choose(logits, [1] * B, draws, 2)
    assert together.logprobs is not None
    for i in range(B):
        alone, _ = choose(logits[i : i + 1], [1], drawing(1, 1.3, top_p[i], u[i]), 2)
        assert alone.logprobs is not None
        assert torch.equal(alone.choice[:, 0], together.choice[:, i])
        assert alone.logprobs[0] == together.logprobs[i]


def test_greedy_rows_beside_drawn_ones(device: torch.device) -> None:
    """Also where a draw takes the lower of two equal ids and greed, with plain text barred, the higher."""
    logits = torch.zeros(4, 300, device=device)
    draws = Draws(
        temperature=torch.tensor([0.0, 1.0, 0.0, 1.0]),
        top_p=torch.tensor([0.9, 0.1, 0.9, 1.0]),
        uniform=torch.tensor([0.0, 0.0, LAST, LAST]),
    )
    found, want = choose(logits, [State.DETECT_X, State.DETECT_X, State.ANSWER, State.ANSWER], draws)
    assert found.tokens.tolist() == want.tokens.tolist() == [5, 0, 0, 299]


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_row_that_nobody_gathered_is_not_drawn(
    top_p: float, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Its likeliest token is taken: what its candidates would weigh was never written."""

    def passed_over(kernel: Any, *args: Any, **options: Any) -> None:
        if kernel is not compiled.gather_kernel:
            launch(kernel, *args, **options)

    monkeypatch.setattr(compiled, "launch", passed_over)
    logits = randn(3, 1500).to(device)
    found, _ = choose(logits, [0, 0, 1], drawing(3, 1.0, top_p, 0.7))
    assert found.tokens.tolist() == allowed_logits(logits, [0, 0, 1]).argmax(axis=1).tolist()


@pytest.mark.parametrize("temperature", [2.0, 1e-3, 1e-30, 1e-38])
@pytest.mark.parametrize("scale", [5.0, 3e37])
def test_every_temperature_above_zero_draws_a_token(temperature: float, scale: float, device: torch.device) -> None:
    logits = randn(2, 300, scale=scale).to(device)
    found, want = choose(logits, [0, 0], drawing(2, temperature, 0.9, 0.5))
    assert found.sound.all()
    if temperature <= 1e-3 or scale > 5:
        assert torch.equal(found.choice.cpu(), want.choice)


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
@pytest.mark.parametrize("V", [16, 1100])
def test_a_row_that_is_no_number_is_reported_and_harms_no_other(V: int, drawn: bool, device: torch.device) -> None:
    """NaN in one allowed place, or in all; an infinite logit; nothing finite; and NaN where it is barred."""
    rows, states = randn(6, V), [State.DETECT_X] * 6 if V == CONTROL_IDS else [State.ANSWER] * 6
    rows[1, 5] = float("nan")
    rows[2] = float("nan")
    rows[3, 0] = float("inf")
    rows[4] = float("-inf")
    rows[5, 3] = float("nan")
    draws = drawing(6, 1.0, [0.9, 0.9, 1.0, 0.9, 0.9, 1.0], 0.5) if drawn else None
    found, _ = choose(rows.to(device), states, draws)
    assert found.sound.tolist() == [True, False, False, False, False, True]
    assert all(0 <= token < V for token in found.tokens.tolist())
    for i in (0, 5):
        one = drawing(1, 1.0, [0.9, 0, 0, 0, 0, 1.0][i], 0.5) if drawn else None
        alone, _ = choose(rows[i : i + 1].to(device), states[:1], one)
        assert torch.equal(alone.choice[:, 0], found.choice[:, i])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [16, 1100])
def test_logprobs(V: int, dtype: torch.dtype, device: torch.device) -> None:
    """Among what the state allows, at temperature 1 whatever the draw's. Errors of float32 at values up to 10."""
    B = 7
    logits, states = randn(B, V, scale=2.0).to(device, dtype), mixed_states(B, V)
    found, _ = choose(logits, states, drawing(B, 0.3, 0.5, 0.7), 4)
    assert found.logprobs is not None
    assert found.top_tokens is not None
    assert found.top_logprobs is not None
    rows = allowed_logits(logits, states)
    every = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    for i, row in enumerate(every):
        assert abs(found.logprobs[i].item() - row[found.tokens[i].item()]) < 1e-5
        likeliest = np.sort(row)[::-1][:4]
        ids, logs = found.top_tokens[i].tolist(), found.top_logprobs[i].double().cpu().numpy()
        finite = np.isfinite(likeliest)
        assert (np.isfinite(logs) == finite).all()
        assert np.abs(logs[finite] - likeliest[finite]).max() < 1e-5
        assert np.abs(row[ids][finite] - likeliest[finite]).max() == 0


def test_numbers_of_a_seed_and_a_step(device: torch.device) -> None:
    """Bit for bit those of `uniform`, and a draw takes them."""
    seeds = torch.tensor([0, 1, -1, (1 << 63) - 1, -(1 << 63), 0x123456789ABCDEF, 7, 1 << 32])
    steps = torch.tensor([0, 767, 1 << 32, (1 << 40) + 3, 1, 2, 3, 0xFFFFFFFF])
    numbers = torch.empty(8, dtype=torch.float64, device=device)
    uniform_kernel[(8,)](seeds.to(device), steps.to(device), numbers)
    assert numbers.tolist() == uniform(seeds, steps).double().tolist()
    logits, half = randn(8, 200).to(device), torch.full((8,), 0.5)
    by_seed, want = choose(logits, [0] * 8, Draws(temperature=half, top_p=half + 0.4, seeds=seeds, steps=steps))
    assert torch.equal(by_seed.choice.cpu(), want.choice)


def test_no_rows(device: torch.device) -> None:
    table = DecodeTable(allowed=TABLE.allowed, follows=TABLE.follows, kinds=TABLE.kinds).to(device)
    states = torch.empty(0, dtype=torch.int64, device=device)
    assert compiled.sample(torch.empty(0, 40, device=device), states, table, None, None).choice.shape == (4, 0)
