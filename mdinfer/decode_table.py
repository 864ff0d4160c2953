"""How each skill's tokens may follow one another: states, what each allows, where each token leads.

    ANSWER        text; the answer opener is barred; everything but eos stays here
    REASONING     text with coordinates; eos and size are barred; the answer opener leads to ANSWER
    DETECT_X      coord (then DETECT_Y) or eos;  DETECT_Y: coord (then DETECT_SIZE);  DETECT_SIZE: size (then DETECT_X)
    POINT_X       coord (then POINT_Y) or eos;   POINT_Y:  coord (then POINT_X)

A coord or size token sampled where the state reads its value is fed back as that value, not as a token; in ANSWER
they are ordinary tokens. Which ids play these parts is the checkpoint's TokenConfig.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from mdinfer.config import TokenConfig
from mdinfer.kernels import DecodeTable, TokenKind
from mdinfer.kernels.sample import CONTROL_IDS, PLAIN


class State(IntEnum):
    ANSWER = 0
    REASONING = 1
    DETECT_X = 2
    DETECT_Y = 3
    DETECT_SIZE = 4
    POINT_X = 5
    POINT_Y = 6


TEXT_STATES = frozenset({State.ANSWER, State.REASONING})
"""States that allow plain text; the others choose among the control ids alone."""

VALUE_STATES = frozenset(State) - {State.ANSWER}
"""States in which a token may carry a coordinate or a size."""


def decode_table(tokens: TokenConfig) -> DecodeTable:
    """The table of all states, one row each, on the CPU."""
    states, classes = len(State), CONTROL_IDS + 1
    allowed = torch.zeros(states, classes, dtype=torch.bool)
    follows = torch.arange(states)[:, None].repeat(1, classes)
    kinds = torch.full((states, classes), int(TokenKind.TEXT))

    for state, barred in (
        (State.ANSWER, (tokens.answer_id,)),
        (State.REASONING, (tokens.eos_id, tokens.size_id)),
    ):
        allowed[state] = True
        allowed[state, list(barred)] = False
    follows[State.REASONING, tokens.answer_id] = State.ANSWER
    kinds[State.REASONING, tokens.coord_id] = TokenKind.COORD

    for state, token, kind, after in (
        (State.DETECT_X, tokens.coord_id, TokenKind.COORD, State.DETECT_Y),
        (State.DETECT_Y, tokens.coord_id, TokenKind.COORD, State.DETECT_SIZE),
        (State.DETECT_SIZE, tokens.size_id, TokenKind.SIZE, State.DETECT_X),
        (State.POINT_X, tokens.coord_id, TokenKind.COORD, State.POINT_Y),
        (State.POINT_Y, tokens.coord_id, TokenKind.COORD, State.POINT_X),
    ):
        allowed[state, token] = True
        follows[state, token] = after
        kinds[state, token] = kind
    for state in (State.DETECT_X, State.POINT_X):
        allowed[state, tokens.eos_id] = True
    assert not allowed[State.DETECT_X, PLAIN]
    return DecodeTable(allowed=allowed, follows=follows, kinds=kinds)
