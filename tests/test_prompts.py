"""Prompts as arrays: what each builder call puts down, and how far each position sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdinfer.kernels import TokenKind
from mdinfer.prompts import Prompt, PromptBuilder

N = 5  # positions of an image here
COORD, SIZE = 5, 6


def builder() -> PromptBuilder:
    return PromptBuilder(0, N)


def test_text_alone_is_causal() -> None:
    prompt = builder().text([7, 8]).text([]).text([9]).build()
    assert prompt.tokens.tolist() == [0, 7, 8, 9]
    assert prompt.kinds.tolist() == [TokenKind.TEXT] * 4
    assert prompt.visible.tolist() == [1, 2, 3, 4]
    assert (len(prompt), prompt.images) == (4, ())


def test_bos_joins_an_image_that_follows_it() -> None:
    prompt = builder().image().text([7, 8]).build()
    assert prompt.tokens.tolist() == [0] * (1 + N) + [7, 8]
    assert prompt.kinds.tolist() == [TokenKind.TEXT] + [TokenKind.IMAGE] * N + [TokenKind.TEXT] * 2
    assert prompt.visible.tolist() == [6] * 6 + [7, 8]
    assert prompt.images == (1,)


def test_bos_does_not_join_a_later_image() -> None:
    prompt = builder().text([7]).image().text([8]).build()
    assert prompt.visible.tolist() == [1, 2, *[7] * 5, 8]
    assert prompt.images == (2,)


def test_two_images_side_by_side_are_two_blocks() -> None:
    prompt = builder().image().image().text([7]).build()
    assert prompt.visible.tolist() == [6] * 6 + [11] * 5 + [12]
    assert prompt.images == (1, 6)


def test_dtypes() -> None:
    prompt = builder().image().spatial_ref((0.5, 0.25), COORD, SIZE).build()
    assert [a.dtype for a in (prompt.tokens, prompt.kinds, prompt.values, prompt.visible)] == [
        np.int64,
        np.int64,
        np.float32,
        np.int32,
    ]


def test_a_point_is_two_coordinates() -> None:
    prompt = builder().spatial_ref((0.25, 0.75), COORD, SIZE).text([7]).build()
    assert prompt.tokens.tolist() == [0, COORD, COORD, 7]
    assert prompt.kinds.tolist() == [TokenKind.TEXT, TokenKind.COORD, TokenKind.COORD, TokenKind.TEXT]
    assert prompt.values.tolist() == [[0, 0], [0.25, 0], [0.75, 0], [0, 0]]


def test_a_box_is_its_centre_and_size() -> None:
    prompt = builder().spatial_ref((0.125, 0.25, 0.625, 0.5), COORD, SIZE).build()
    assert prompt.tokens.tolist() == [0, COORD, COORD, SIZE]
    assert prompt.kinds.tolist() == [TokenKind.TEXT, TokenKind.COORD, TokenKind.COORD, TokenKind.SIZE]
    assert prompt.values.tolist() == [[0, 0], [0.375, 0], [0.375, 0], [0.5, 0.25]]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_any_box(sides: list[float]) -> None:
    x_min, x_max = sorted(sides[:2])
    y_min, y_max = sorted(sides[2:])
    values = builder().spatial_ref((x_min, y_min, x_max, y_max), COORD, SIZE).build().values
    (x, _), (y, _), (width, height) = values[1:].tolist()
    assert x == pytest.approx((x_min + x_max) / 2, abs=1e-7)
    assert y == pytest.approx((y_min + y_max) / 2, abs=1e-7)
    assert (width, height) == pytest.approx((x_max - x_min, y_max - y_min), abs=1e-7)


@given(st.lists(st.one_of(st.just("image"), st.integers(0, 4)), max_size=8))
@settings(max_examples=100)
def test_visible_says_who_attends_to_whom(parts: list[str | int]) -> None:
    """Against block ids: position i sees j if j is not later, or both are of one image's block."""
    prompt, blocks = builder(), [-1]
    for image, part in enumerate(parts):
        if isinstance(part, int):
            prompt.text([20] * part)
            blocks += [-1] * part
        else:
            blocks += [image] * N
            prompt.image()
            if len(blocks) == 1 + N:
                blocks[0] = image
    built: Prompt = prompt.build()
    assert len(built) == len(blocks)
    for i, mine in enumerate(blocks):
        seen = {j for j, other in enumerate(blocks) if j <= i or (mine >= 0 and other == mine)}
        assert seen == set(range(built.visible[i]))
