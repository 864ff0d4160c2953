"""The choice of the next token: what a state bars, ties, the distribution of draws, independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdinfer.config import TokenConfig
from mdinfer.decode_table import State, decode_table
from mdinfer.kernels import DecodeTable, Draws, Sampled, TokenKind, nucleus, sample, uniform
from tests.kernels.compare import randn

TABLE = decode_table(TokenConfig())
V = 512
LAST = 1 - 2**-24  # the largest uniform number


def choose(
    logits: torch.Tensor,
    state: State | list[State],
    *,
    temperature: float = 0.0,
    top_p: float | list[float] = 1.0,
    u: float | list[float] | torch.Tensor | None = None,
    logprobs: int | None = None,
    table: DecodeTable = TABLE,
) -> Sampled:
    """Rows of logits; whatever else is given once holds for all of them."""
    B = len(logits)

    def column(value: object) -> torch.Tensor:
        return torch.as_tensor(value, dtype=torch.float32).expand(B)

    states = state if isinstance(state, list) else [state] * B
    return sample(
        logits.clone(),  # for it is overwritten
        torch.tensor([int(s) for s in states]),
        table,
        None if u is None else Draws(temperature=column(temperature), top_p=column(top_p), uniform=column(u)),
        logprobs,
    )


def peaked(*ids: int, size: int = V) -> torch.Tensor:
    """One row whose logits fall from the first id to the last; all others are lower still."""
    row = torch.full((1, size), -10.0)
    for place, token in enumerate(ids):
        row[0, token] = 10.0 - place
    return row


@pytest.mark.parametrize(
    ("state", "logits", "token", "after", "kind"),
    [
        (State.ANSWER, peaked(3, 40), 40, State.ANSWER, TokenKind.TEXT),
        (State.ANSWER, peaked(3, 0, 40), 0, State.ANSWER, TokenKind.TEXT),
        (State.ANSWER, peaked(5), 5, State.ANSWER, TokenKind.TEXT),
        (State.ANSWER, peaked(6), 6, State.ANSWER, TokenKind.TEXT),
        (State.ANSWER, peaked(V - 1), V - 1, State.ANSWER, TokenKind.TEXT),
        (State.REASONING, peaked(0, 6, 77), 77, State.REASONING, TokenKind.TEXT),
        (State.REASONING, peaked(0, 6, 5), 5, State.REASONING, TokenKind.COORD),
        (State.REASONING, peaked(0, 3), 3, State.ANSWER, TokenKind.TEXT),
        (State.REASONING, peaked(7), 7, State.REASONING, TokenKind.TEXT),
        (State.DETECT_X, peaked(99, 3, 0, 5), 0, State.DETECT_X, TokenKind.TEXT),
        (State.DETECT_X, peaked(99, 6, 5, 0), 5, State.DETECT_Y, TokenKind.COORD),
        (State.DETECT_Y, peaked(99, 0, 6), 5, State.DETECT_SIZE, TokenKind.COORD),
        (State.DETECT_SIZE, peaked(99, 0, 5), 6, State.DETECT_X, TokenKind.SIZE),
        (State.POINT_X, peaked(99, 3, 0, 5), 0, State.POINT_X, TokenKind.TEXT),
        (State.POINT_X, peaked(99, 5, 0), 5, State.POINT_Y, TokenKind.COORD),
        (State.POINT_Y, peaked(99, 0), 5, State.POINT_X, TokenKind.COORD),
    ],
)
def test_a_state_bars_and_leads_on(
    state: State, logits: torch.Tensor, token: int, after: State, kind: TokenKind
) -> None:
    """Greedy, and drawn from a nucleus of one, which is the same; and, without plain text, of the 16 ids alone."""
    greedy = choose(logits, state)
    drawn = choose(logits, state, temperature=1.0, top_p=0.01, u=LAST)
    few = choose(logits[:, :16], state) if token < 16 and logits[0, 16:].max() < 0 else greedy
    for found in (greedy, drawn, few):
        assert (found.tokens.item(), found.states.item(), found.kinds.item()) == (token, after, kind)
        assert found.logprobs is found.top_tokens is found.top_logprobs is None


@pytest.mark.parametrize("state", [State.DETECT_X, State.POINT_X])
@pytest.mark.parametrize("size", [16, V])
def test_a_tie_between_stopping_and_going_on_goes_on(state: State, size: int) -> None:
    logits = torch.zeros(3, size)
    logits[1] = torch.linspace(-1, 1, size)
    logits[1, [0, 5]] = 0.25
    logits[2, [0, 5]] = torch.tensor([-0.0, 0.0])
    assert choose(logits, state).tokens.tolist() == [5, 5, 5]
    logits[:, 5] -= 1e-6
    logits[1, 5] = 0.25 - 1e-6
    assert choose(logits, state).tokens.tolist() == [0, 0, 0]


def test_a_tie_in_text_goes_to_the_lower_id() -> None:
    logits = torch.zeros(1, V)
    logits[0, [3, 20, 300]] = 1.0
    assert choose(logits, State.ANSWER).tokens.item() == 20
    assert choose(logits, State.REASONING).tokens.item() == 3


def test_states_of_one_batch_do_not_mix() -> None:
    logits = peaked(3, 0, 5, 6, 40).repeat(len(State), 1)
    found = choose(logits, list(State))
    assert found.tokens.tolist() == [0, 3, 0, 5, 6, 0, 5]
    assert found.tokens.tolist() == [choose(logits[:1], state).tokens.item() for state in State]


def nucleus_twin(logits: list[float], temperature: float, top_p: float) -> list[float]:
    odds = [math.exp((x - max(logits)) / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: (-odds[i], i))
    kept, before = {}, 0.0
    for i in order:
        if before / sum(odds) <= top_p:
            kept[i] = odds[i]
        before += odds[i]
    return [kept.get(i, 0.0) / sum(kept.values()) for i in range(len(logits))]


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_nucleus_against_the_twin(top_p: float) -> None:
    logits = randn(4, 50, scale=2.0)
    found = nucleus(logits, torch.full((4,), top_p))
    for row, mine in zip(logits.double().tolist(), found.tolist(), strict=True):
        assert mine == pytest.approx(nucleus_twin(row, 1.0, top_p), abs=1e-6)


def quantile(degrees: int) -> float:
    """Of chi-square, passed by chance once in 10^6 (Wilson and Hilferty's approximation)."""
    a = 2 / (9 * degrees)
    return float(degrees * (1 - a + 4.75 * math.sqrt(a)) ** 3)


@pytest.mark.parametrize(
    ("size", "temperature", "top_p"),
    [(40, 1.0, 1.0), (40, 0.7, 0.9), (V, 1.0, 0.5), (V, 1.7, 0.97), (V, 0.2, 0.9)],
)
def test_draws_follow_the_nucleus(size: int, temperature: float, top_p: float) -> None:
    """Chi-square of 50,000 draws against the twin; cells of less than 10 expected draws are one cell."""
    row = randn(1, size, seed=size, scale=2.0)
    count = 50_000
    allowed = [x if i != 3 else -1e9 for i, x in enumerate(row[0].double().tolist())]
    expected = np.array(nucleus_twin(allowed, temperature, top_p)) * count
    seen = np.zeros(size)
    for part in range(10):
        u = uniform(torch.full((count // 10,), 99), torch.arange(count // 10) + part * count // 10)
        tokens = choose(row.expand(count // 10, -1), State.ANSWER, temperature=temperature, top_p=top_p, u=u).tokens
        seen += np.bincount(tokens.numpy(), minlength=size)
    assert seen[expected == 0].sum() == 0
    common = expected >= 10
    cells = [*zip(seen[common], expected[common], strict=True), (seen[~common].sum(), expected[~common].sum())]
    cells = [(s, e) for s, e in cells if e > 0]
    if len(cells) > 1:
        assert sum((s - e) ** 2 / e for s, e in cells) < quantile(len(cells) - 1)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_the_ends_of_the_unit_interval_are_the_ends_of_the_nucleus(top_p: float) -> None:
    row = randn(1, V, scale=2.0)
    kept = nucleus(row.index_fill(1, torch.tensor([3]), float("-inf")), torch.tensor([top_p]))[0]
    first = choose(row, State.ANSWER, temperature=1.0, top_p=top_p, u=0.0).tokens.item()
    last = choose(row, State.ANSWER, temperature=1.0, top_p=top_p, u=LAST).tokens.item()
    assert first == int(kept.argmax())
    assert kept[int(last)] == kept[kept > 0].min()


def test_without_a_nucleus_ids_are_laid_out_as_they_come() -> None:
    row = randn(1, V)
    ends = [choose(row, State.ANSWER, temperature=1.0, top_p=1.0, u=u).tokens.item() for u in (0.0, LAST)]
    assert ends == [0, V - 1]


@pytest.mark.parametrize("size", [300, V])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_a_row_is_drawn_as_if_alone(size: int, ties: bool) -> None:
    """Beside rows of other temperatures and nuclei, one of which keeps every token; logits as bfloat16 gives them
    are often equal, and equal ones must not change places because of a neighbour."""
    rows = randn(24, size, seed=5)
    if ties:
        rows = rows.to(torch.bfloat16).float()
    u = uniform(torch.arange(24), torch.full((24,), 3)).tolist()
    top_p = [1.0 if i == 7 else 0.3 + 0.025 * i for i in range(24)]
    together = choose(rows, State.ANSWER, temperature=1.3, top_p=top_p, u=u, logprobs=2)
    for i in range(24):
        alone = choose(rows[i : i + 1], State.ANSWER, temperature=1.3, top_p=top_p[i], u=u[i], logprobs=2)
        assert alone.tokens[0] == together.tokens[i], i
        assert alone.logprobs is not None
        assert together.logprobs is not None
        assert abs(alone.logprobs[0] - together.logprobs[i]) < 1e-6


def test_equal_logits_are_drawn_from_the_lower_ids() -> None:
    """The nucleus keeps the lower of equal tokens, however wide it is: 100 equal ones, of which half are kept."""
    row = torch.full((1, V), -30.0)
    row[0, 100:200] = 1.0
    kept = nucleus(row, torch.tensor([0.495]))[0].nonzero()[:, 0].tolist()
    assert kept == list(range(100, 150))
    us = (torch.arange(64) / 64).tolist()
    drawn = choose(row.expand(64, -1), State.ANSWER, temperature=1.0, top_p=0.495, u=us).tokens.tolist()
    assert set(drawn) <= set(kept)


def test_greedy_rows_beside_drawn_ones() -> None:
    rows = randn(6, V)
    temperatures = [0.0, 1.0, 0.0, 0.5, 0.0, 2.0]
    found = sample(
        rows.clone(),
        torch.zeros(6, dtype=torch.int64),
        TABLE,
        Draws(temperature=torch.tensor(temperatures), top_p=torch.ones(6), uniform=torch.full((6,), LAST)),
    )
    greedy = choose(rows, State.ANSWER).tokens
    assert torch.equal(found.tokens[::2], greedy[::2])
    assert not torch.equal(found.tokens[1::2], greedy[1::2])


@pytest.mark.parametrize("temperature", [2.0, 1e-3, 1e-30, 1e-38, 1e-40, 1e-45, 5e-324])
def test_every_temperature_above_zero_draws_a_token(temperature: float) -> None:
    """As small as a float gets, where logits over temperature overflow: the likeliest token, and no fault."""
    row = randn(1, V, scale=5.0)
    found = choose(row, State.ANSWER, temperature=temperature, top_p=0.9, u=0.5).tokens.item()
    if temperature <= 1e-3:
        assert found == choose(row, State.ANSWER).tokens.item()


def test_large_logits_are_no_fault() -> None:
    row = randn(1, V, scale=3e37)
    assert choose(row, State.ANSWER, temperature=1.0, top_p=0.9, u=0.5).tokens.item() == int(row.argmax())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_other_types(dtype: torch.dtype) -> None:
    rows = randn(4, V).to(dtype)
    assert torch.equal(choose(rows, State.ANSWER).tokens, choose(rows.float(), State.ANSWER).tokens)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 2.0])
def test_logprobs_are_of_temperature_one_among_what_is_allowed(temperature: float) -> None:
    rows = randn(5, V, scale=2.0)
    found = choose(rows, State.ANSWER, temperature=temperature, top_p=0.5, u=0.7, logprobs=4)
    assert found.logprobs is not None
    assert found.top_tokens is not None
    assert found.top_logprobs is not None
    for i, row in enumerate(rows.double().tolist()):
        total = math.log(sum(math.exp(x) for j, x in enumerate(row) if j != 3))
        order = sorted((j for j in range(V) if j != 3), key=lambda j: -row[j])[:4]
        assert found.logprobs[i].item() == pytest.approx(row[int(found.tokens[i])] - total, abs=1e-5)
        assert found.top_tokens[i].tolist() == order
        assert found.top_logprobs[i].tolist() == pytest.approx([row[j] - total for j in order], abs=1e-5)


def test_no_alternatives_asked_for_still_gives_the_logprob() -> None:
    found = choose(peaked(40), State.ANSWER, logprobs=0)
    assert found.logprobs is not None
    assert found.top_tokens is not None
    assert found.top_tokens.shape == (1, 0)
    assert found.logprobs.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_no_number_is_reported_and_harms_no_other(temperature: float) -> None:
    rows = randn(4, V)
    rows[1] = float("nan")
    rows[2, 100] = float("inf")
    found = choose(rows, State.ANSWER, temperature=temperature, top_p=0.9, u=0.5)
    assert found.sound.tolist() == [True, False, False, True]
    alone = choose(rows[[0, 3]], State.ANSWER, temperature=temperature, top_p=0.9, u=0.5)
    assert torch.equal(found.tokens[[0, 3]], alone.tokens)
