"""What makes two positions the same: exact, for text, coordinates, sizes and pictures."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdinfer.identities import Identities
from mdinfer.kernels import TokenKind
from mdinfer.prompts import PromptBuilder
from mdinfer.sequence import SampledToken

A, B = (hashlib.sha256(name).digest() for name in (b"a", b"b"))
FLOATS = st.floats(0, 1, width=32)


def builder() -> PromptBuilder:
    return PromptBuilder(0, 5)


def test_text_is_its_tokens() -> None:
    assert Identities().of_prompt(builder().text([7, 51199]).build(), []).tolist() == [0, 7, 51199]


def test_a_picture_is_told_apart_at_each_position_and_bos_is_part_of_its_block() -> None:
    table = Identities()
    prompt = builder().image().text([7]).image().build()
    same, other = table.of_prompt(prompt, [A, A]), table.of_prompt(prompt, [A, B])
    assert len(set(same[:6])) == 6
    assert same[7:] == same[:5]  # by the offset in the block
    assert other[:7] == same[:7]
    assert not set(other[7:]) & set(same)
    assert table.of_prompt(builder().build(), [])[0] != same[0]


def test_spatial_refs_are_the_values_that_were_sent() -> None:
    table = Identities()
    box = table.of_prompt(builder().spatial_ref((0.1, 0.2, 0.4, 0.7), 5, 6).build(), [])
    point = table.of_prompt(builder().spatial_ref((0.25, 0.45), 5, 6).build(), [])
    wider = table.of_prompt(builder().spatial_ref((0.0, 0.2, 0.5, 0.7), 5, 6).build(), [])
    assert box[1:3] == point[1:3] == wider[1:3]
    assert box[3] != wider[3]
    assert len(set(box)) == 4


@given(st.lists(st.one_of(st.integers(0, 60_000), FLOATS, st.tuples(FLOATS, FLOATS)), max_size=30))
def test_sampled_tokens_are_the_same_where_their_inputs_are(values: list[int | float | tuple[float, float]]) -> None:
    """Told apart by kind and exact bits, whatever the token of a value is; and as a prompt would have them."""
    table, inputs = Identities(), list[tuple[object, ...]]()
    ids = []
    for value in values:
        if isinstance(value, int):
            ids.append(table.of_token(SampledToken(value, TokenKind.TEXT, (0.5, 0.5))))
            inputs.append((value,))
        elif isinstance(value, float):
            ids.append(table.of_token(SampledToken(5, TokenKind.COORD, (value, 0.25))))
            inputs.append(("x", np.float32(value).tobytes()))
        else:
            ids.append(table.of_token(SampledToken(6, TokenKind.SIZE, value)))
            inputs.append(("s", np.array(value, np.float32).tobytes()))
    for i in range(len(ids)):
        for j in range(i):
            assert (ids[i] == ids[j]) == (inputs[i] == inputs[j])


def test_a_sampled_coordinate_equals_a_sent_one() -> None:
    table = Identities()
    sent = table.of_prompt(builder().spatial_ref((0.25, 0.75), 5, 6).build(), [])
    assert table.of_token(SampledToken(5, TokenKind.COORD, (0.25, 0.0))) == sent[1]


def test_what_is_forgotten_gets_a_new_number_and_never_another_ones() -> None:
    table, prompt = Identities(capacity=2), builder().image().build()
    digests = [hashlib.sha256(bytes([i])).digest() for i in range(4)]
    first = [table.of_prompt(prompt, [digest])[0] for digest in digests]
    assert table.of_prompt(prompt, [digests[3]])[0] == first[3]
    again = table.of_prompt(prompt, [digests[0]])[0]
    assert len({*first, again}) == 5
