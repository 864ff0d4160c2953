"""Detect and point: boxes and points out of coordinate and size tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdinfer.result import XY, Box, Event
from mdinfer.sequence import SampledToken
from mdinfer.skills.detect import BoxOutput
from mdinfer.skills.point import PointOutput
from tests.skills.tokens import IDS, feed, token


def coord(value: float) -> SampledToken:
    return token(IDS.coord_id, value)


def box_tokens(x: float, y: float, width: float, height: float) -> list[SampledToken]:
    return [coord(x), coord(y), token(IDS.size_id, width, height)]


def test_a_box_is_centre_and_extent() -> None:
    one = BoxOutput(clip=False)
    events, _ = feed(one, [*box_tokens(0.5, 0.25, 0.5, 0.25), *box_tokens(0.875, 0.125, 0.5, 0.5)])
    boxes = [Box(0.25, 0.125, 0.75, 0.375), Box(0.625, -0.125, 1.125, 0.375)]
    assert events == [Event(box=box) for box in boxes]
    assert one.fields() == {"objects": boxes, "token_ids": [5, 5, 6] * 2}


def test_clipping_cuts_at_the_pictures_edge() -> None:
    one = BoxOutput(clip=True)
    events, _ = feed(one, box_tokens(0.875, 0.125, 0.5, 0.5))
    assert events == [Event(box=Box(0.625, 0.0, 1.0, 0.375))]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.booleans())
def test_any_box(numbers: list[float], clip: bool) -> None:
    x, y, width, height = numbers
    one = BoxOutput(clip=clip)
    feed(one, box_tokens(x, y, width, height))
    raw = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    expected = [min(1.0, max(0.0, side)) for side in raw] if clip else raw
    assert list(one.fields()["objects"][0]) == pytest.approx(list(expected))


@pytest.mark.parametrize("count", [1, 2])
def test_an_unfinished_box_is_dropped(count: int) -> None:
    one = BoxOutput(clip=True)
    events, _ = feed(one, box_tokens(0.5, 0.5, 0.5, 0.5)[:count])
    assert events == []
    assert one.fields() == {"objects": [], "token_ids": [5] * count}


def test_points() -> None:
    one = PointOutput()
    events, _ = feed(one, [coord(v) for v in (0.5, 0.25, 0.0, 0.75, 0.125)])
    points = [XY(0.5, 0.25), XY(0.0, 0.75)]
    assert events == [Event(point=point) for point in points]
    assert one.fields() == {"points": points, "token_ids": [5] * 5}
