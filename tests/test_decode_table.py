"""The decode table of every skill, entry by entry."""

from __future__ import annotations

import dataclasses

import pytest

from mdinfer.config import TokenConfig
from mdinfer.decode_table import TEXT_STATES, VALUE_STATES, State, decode_table
from mdinfer.kernels import TokenKind
from mdinfer.kernels.sample import CONTROL_IDS, PLAIN

IDS = TokenConfig()
OTHERS = dataclasses.replace(IDS, eos_id=10, answer_id=11, coord_id=12, size_id=13)
EVERY = set(range(CONTROL_IDS + 1))


def expected(tokens: TokenConfig) -> dict[State, tuple[set[int], dict[int, tuple[State, TokenKind]]]]:
    """Per state: the classes it allows, and those that lead elsewhere or carry a value."""
    eos, answer, coord, size = tokens.eos_id, tokens.answer_id, tokens.coord_id, tokens.size_id
    return {
        State.ANSWER: (EVERY - {answer}, {}),
        State.REASONING: (
            EVERY - {eos, size},
            {answer: (State.ANSWER, TokenKind.TEXT), coord: (State.REASONING, TokenKind.COORD)},
        ),
        State.DETECT_X: ({eos, coord}, {coord: (State.DETECT_Y, TokenKind.COORD)}),
        State.DETECT_Y: ({coord}, {coord: (State.DETECT_SIZE, TokenKind.COORD)}),
        State.DETECT_SIZE: ({size}, {size: (State.DETECT_X, TokenKind.SIZE)}),
        State.POINT_X: ({eos, coord}, {coord: (State.POINT_Y, TokenKind.COORD)}),
        State.POINT_Y: ({coord}, {coord: (State.POINT_X, TokenKind.COORD)}),
    }


@pytest.mark.parametrize("tokens", [IDS, OTHERS], ids=["published", "other_ids"])
@pytest.mark.parametrize("state", State)
def test_each_entry(state: State, tokens: TokenConfig) -> None:
    table = decode_table(tokens)
    allowed, special = expected(tokens)[state]
    assert {i for i, allows in enumerate(table.allowed[state].tolist()) if allows} == allowed
    for column in allowed:
        after, kind = special.get(column, (state, TokenKind.TEXT))
        assert (table.follows[state, column].item(), table.kinds[state, column].item()) == (after, kind)


def test_the_table_covers_every_state_and_class() -> None:
    table = decode_table(IDS)
    for part in (table.allowed, table.follows, table.kinds):
        assert part.shape == (len(State), CONTROL_IDS + 1)
    assert table.allowed.any(dim=1).all()
    assert {int(s) for s in table.follows.flatten()} <= {int(s) for s in State}


def test_state_sets_agree_with_the_table() -> None:
    """The runner takes from them which heads a step needs."""
    table = decode_table(IDS)
    assert {s for s in State if table.allowed[s, PLAIN]} == TEXT_STATES
    valued = {s for s in State if (table.kinds[s][table.allowed[s]] != TokenKind.TEXT).any()}
    assert valued == VALUE_STATES


@pytest.mark.parametrize(
    ("state", "course"),
    [
        (State.DETECT_X, [5, 5, 6, 5, 5, 6, 0]),
        (State.POINT_X, [5, 5, 5, 5, 0]),
        (State.REASONING, [40, 7, 5, 5, 9, 41, 3, 40, 5, 0]),
        (State.ANSWER, [40, 5, 6, 7, 0]),
    ],
    ids=["detect", "point", "reasoning", "answer"],
)
def test_a_whole_course_is_allowed(state: State, course: list[int]) -> None:
    table, at = decode_table(IDS), int(state)
    for token in course:
        column = min(token, PLAIN)
        assert table.allowed[at, column], (State(at), token)
        at = int(table.follows[at, column])
    assert at in (state, State.ANSWER)
