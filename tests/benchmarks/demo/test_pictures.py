"""Drawn pictures show what their annotations say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from benchmarks.demo.pictures import Scene, Shape, draw_other, draw_scene, paint
from benchmarks.demo.words import COLOURS, KINDS, LOOKS

CLOSE = 60  # of a pixel's channels to a colour's: shades vary by 18


def pixels_of(picture: Image.Image, colour: str) -> npt.NDArray[np.bool_]:
    far = np.abs(np.asarray(picture).astype(int) - np.array(COLOURS[colour])).max(axis=-1)
    found: npt.NDArray[np.bool_] = far < CLOSE
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_shape_fills_its_box(kind: str, colour: str) -> None:
    shape = Shape(kind=kind, colour=colour, x=0.4, y=0.55, w=0.3, h=0.2)
    picture = paint(Scene(width=300, height=450, background="plain", shapes=(shape,), seed=3))
    ys, xs = np.nonzero(pixels_of(picture, colour))
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    expected = np.array([(0.4 - 0.15) * 300, (0.55 - 0.1) * 450, (0.4 + 0.15) * 300, (0.55 + 0.1) * 450])
    assert np.abs(box - expected).max() <= 1.5
    share = {"square": 1.0, "circle": 0.785, "triangle": 0.5, "cross": 0.54, "star": 0.32}[kind]
    assert len(xs) / (90 * 90) == pytest.approx(share, abs=0.05)


def test_scenes_are_sound() -> None:
    draw = np.random.default_rng(0)
    tiled = set()
    for _ in range(300):
        scene = draw_scene(draw)
        assert 1 <= len(scene.shapes) <= 5
        assert 72 <= scene.width <= 900
        assert 72 <= scene.height <= 900
        tiled.add(min(scene.width, scene.height) > 112)
        assert [s.x for s in scene.shapes] == sorted(s.x for s in scene.shapes)
        for i, a in enumerate(scene.shapes):
            assert a.look in LOOKS
            assert a.w / 2 < a.x < 1 - a.w / 2
            assert a.h / 2 < a.y < 1 - a.h / 2
            for b in scene.shapes[:i]:
                assert abs(a.x - b.x) > (a.w + b.w) / 2 or abs(a.y - b.y) > (a.h + b.h) / 2
    assert tiled == {True, False}


def test_the_same_scene_is_the_same_picture() -> None:
    for make in (draw_scene, draw_other):
        scene = make(np.random.default_rng(5))
        assert paint(scene).tobytes() == paint(scene).tobytes()
        assert paint(scene).size == (scene.width, scene.height)


def test_backgrounds_differ() -> None:
    spreads = {}
    for background in ("plain", "noisy", "gradient"):
        pixels = np.asarray(paint(Scene(width=200, height=200, background=background, shapes=(), seed=1))).astype(float)
        smooth = np.abs(np.diff(pixels, axis=1)).mean()
        spreads[background] = (pixels.std(axis=(0, 1)).max(), smooth)
    assert spreads["plain"] == (0, 0)
    assert spreads["gradient"][0] > 10 > spreads["gradient"][1]
    assert spreads["noisy"][1] > 5
