"""Pictures of coloured shapes with their annotations, and pictures of anything but shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw

from benchmarks.demo.words import BACKGROUNDS, COLOURS, HELD_OUT_LOOKS, KINDS, LOOKS

_EDGES = (1 / 3, 2 / 3)  # between left, middle and right; top, middle and bottom
_CLEARANCE = 0.03  # of a centre from those edges, and between centres along x: no picture is a matter of opinion
_GAP = 0.015  # between boxes
_NAMELESS_COLOURS = ("#ff96be", "#7a4a20", "#28c8d2", "#dc28c8", "#0a7878", "#96dc28", "#6e0a1e", "#14145a", "#5078b4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One shape; centre and extent as fractions of the picture's width and height."""

    kind: str
    colour: str
    x: float
    y: float
    w: float
    h: float

    @property
    def look(self) -> tuple[str, str]:
        return self.colour, self.kind

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """width and height in pixels; shapes from left to right; `seed` draws the colours' shades and the background.

    background is one of BACKGROUNDS, or "other": then the picture is a texture that shows no shapes at all.
    """

    width: int
    height: int
    background: str
    shapes: tuple[Shape, ...]
    seed: int


def draw_scene(
    draw: np.random.Generator, *, held_out: bool = False, least: int = 1, most: int = 5, largest: int = 900
) -> Scene:
    """A scene of `least` to `most` shapes, of training looks; with `held_out`, at least one look is a held-out one.

    `largest` is the longest a side may be, in pixels: small pictures are quicker to make.
    """
    width, height = _size(draw, largest)
    looks = [look for look in LOOKS if held_out or look not in HELD_OUT_LOOKS]
    while True:
        shapes: list[Shape] = []
        count = int(draw.integers(least, most + 1))
        repeats = draw.random() < 0.4
        for i in range(count):
            if held_out and i == 0:
                colour, kind = sorted(HELD_OUT_LOOKS)[int(draw.integers(len(HELD_OUT_LOOKS)))]
            elif repeats and shapes and draw.random() < 0.4:
                colour, kind = shapes[int(draw.integers(len(shapes)))].look
            else:
                colour, kind = looks[int(draw.integers(len(looks)))]
            shape = _place(draw, kind, colour, shapes, count, (width, height))
            if shape is None:
                break
            shapes.append(shape)
        if len(shapes) == count:
            return Scene(
                width=width,
                height=height,
                background=BACKGROUNDS[int(draw.integers(len(BACKGROUNDS)))],
                shapes=tuple(sorted(shapes, key=lambda s: s.x)),
                seed=int(draw.integers(1 << 31)),
            )


def draw_other(draw: np.random.Generator, *, largest: int = 900) -> Scene:
    """A picture with no shapes: a texture, or one in three a bare background."""
    width, height = _size(draw, largest)
    bare = draw.random() < 0.33
    return Scene(
        width=width,
        height=height,
        background=BACKGROUNDS[int(draw.integers(len(BACKGROUNDS)))] if bare else "other",
        shapes=(),
        seed=int(draw.integers(1 << 31)),
    )


def recoloured(draw: np.random.Generator, scene: Scene, share: float = 1.0) -> Scene:
    """The scene with a share of its shapes, at least one, in colours that have no name here, half of them of one kind:
    a kind is to be known, and counted, whatever its colour.
    """
    kind = _one(draw, KINDS)

    def change(shape: Shape) -> Shape:
        colour = _one(draw, _NAMELESS_COLOURS)
        return replace(shape, colour=colour, kind=kind if draw.random() < 0.5 else shape.kind)

    return _changed(draw, scene, share, change)


def reshaped(draw: np.random.Generator, scene: Scene, share: float = 1.0) -> Scene:
    """The scene with a share of its shapes, at least one, of kinds that have no name here, half of them of one colour:
    a colour is to be known, and counted, whatever has it.
    """
    colour = _one(draw, tuple(COLOURS))

    def change(shape: Shape) -> Shape:
        kind = _one(draw, _NAMELESS_KINDS)
        return replace(shape, kind=kind, colour=colour if draw.random() < 0.5 else shape.colour)

    return _changed(draw, scene, share, change)


def paint(scene: Scene) -> Image.Image:
    """The picture, RGB; the same scene gives the same pixels."""
    draw = np.random.default_rng(scene.seed)
    size = scene.width, scene.height
    if scene.background == "other":
        return _texture(draw, size)
    picture = _background(draw, scene.background, size)
    pen = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        shade = tuple(int(np.clip(c + draw.integers(-18, 19), 0, 255)) for c in _rgb(shape.colour))
        _outline(pen, shape, size, shade)
    return picture


def _changed(draw: np.random.Generator, scene: Scene, share: float, change: Callable[[Shape], Shape]) -> Scene:
    sure = int(draw.integers(len(scene.shapes)))
    shapes = (change(s) if i == sure or draw.random() < share else s for i, s in enumerate(scene.shapes))
    return replace(scene, shapes=tuple(shapes))


def _one(draw: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(draw.integers(len(names)))]


def _size(draw: np.random.Generator, largest: int) -> tuple[int, int]:
    """Width and height: 120 to `largest` pixels, one in ten 72 to 112 (a single tile); sides within a factor of two."""
    low, high = (72, 112) if draw.random() < 0.1 or largest <= 112 else (120, largest)
    area = math.exp(draw.uniform(math.log(low), math.log(high)))
    aspect = math.exp(draw.normal(0, 0.3))
    aspect = min(2.0, max(0.5, aspect))
    width, height = (int(np.clip(round(area * f), low, high)) for f in (aspect**0.5, aspect**-0.5))
    return width, height


def _place(
    draw: np.random.Generator, kind: str, colour: str, others: Sequence[Shape], count: int, size: tuple[int, int]
) -> Shape | None:
    """A shape clear of the others and of the edges between regions; None where no room was found."""
    mean = math.sqrt(size[0] * size[1])
    largest = 0.36 if count <= 2 else 0.30 if count <= 3 else 0.24
    for _ in range(40):
        side = min(draw.uniform(0.17, largest) * mean, 0.45 * min(size))
        w, h = side / size[0], side / size[1]
        x, y = draw.uniform(w / 2 + 0.01, 1 - w / 2 - 0.01), draw.uniform(h / 2 + 0.01, 1 - h / 2 - 0.01)
        if any(abs(at - edge) < _CLEARANCE for at in (x, y) for edge in _EDGES):
            continue
        if all(
            abs(x - o.x) > _CLEARANCE and (abs(x - o.x) > (w + o.w) / 2 + _GAP or abs(y - o.y) > (h + o.h) / 2 + _GAP)
            for o in others
        ):
            return Shape(kind=kind, colour=colour, x=float(x), y=float(y), w=float(w), h=float(h))
    return None


def _rgb(colour: str) -> tuple[int, ...]:
    return COLOURS.get(colour) or ImageColor.getrgb(colour)


def _outline(pen: ImageDraw.ImageDraw, shape: Shape, size: tuple[int, int], shade: tuple[int, ...]) -> None:
    """Fill the shape so that it touches all four sides of its box."""
    width, height = shape.w * size[0], shape.h * size[1]
    left, top = shape.x * size[0] - width / 2, shape.y * size[1] - height / 2
    if shape.kind == "circle":
        pen.ellipse((left, top, left + width, top + height), fill=shade)
        return
    pen.polygon([(left + u * width, top + v * height) for u, v in _CORNERS[shape.kind]], fill=shade)


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        radius, angle = (1.0, 0.42)[i % 2], math.pi * (i / 5 - 0.5)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    xs, ys = zip(*points, strict=True)
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in points]


_A, _B = 0.34, 0.66  # the bars of a cross
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "cross": [
        (_A, 0),
        (_B, 0),
        (_B, _A),
        (1, _A),
        (1, _B),
        (_B, _B),
        (_B, 1),
        (_A, 1),
        (_A, _B),
        (0, _B),
        (0, _A),
        (_A, _A),
    ],
    "star": _star(),
}
_UNNAMED: dict[str, list[tuple[float, float]]] = {
    "arrow": [(0, 0.3), (0.55, 0.3), (0.55, 0), (1, 0.5), (0.55, 1), (0.55, 0.7), (0, 0.7)],
    "chevron": [(0, 0), (0.5, 0.35), (1, 0), (1, 0.65), (0.5, 1), (0, 0.65)],
    "ell": [(0, 0), (0.4, 0), (0.4, 0.6), (1, 0.6), (1, 1), (0, 1)],
    "hourglass": [(0, 0), (1, 0), (0.62, 0.5), (1, 1), (0, 1), (0.38, 0.5)],
    "tee": [(0, 0), (1, 0), (1, 0.36), (0.68, 0.36), (0.68, 1), (0.32, 1), (0.32, 0.36), (0, 0.36)],
    "trough": [(0, 0), (0.33, 0), (0.33, 0.62), (0.67, 0.62), (0.67, 0), (1, 0), (1, 1), (0, 1)],
    "zed": [(0, 0), (0.62, 0), (0.62, 0.62), (1, 0.62), (1, 1), (0.38, 1), (0.38, 0.38), (0, 0.38)],
}
for _name, _points in _UNNAMED.items():  # each as it is, mirrored, upside down and both
    for _flip in ((0, 0), (1, 0), (0, 1), (1, 1)):
        _CORNERS[f"{_name}{_flip[0]}{_flip[1]}"] = [(abs(_flip[0] - u), abs(_flip[1] - v)) for u, v in _points]
_NAMELESS_KINDS = tuple(kind for kind in _CORNERS if kind not in KINDS)


def _muted(draw: np.random.Generator) -> npt.NDArray[np.float64]:
    """A colour of little saturation: light (two in three), dark or between."""
    light = draw.choice([draw.uniform(195, 250), draw.uniform(195, 250), draw.uniform(25, 75), draw.uniform(90, 170)])
    colour: npt.NDArray[np.float64] = np.clip(light + draw.uniform(-14, 14, 3), 0, 255)
    return colour


def _background(draw: np.random.Generator, kind: str, size: tuple[int, int]) -> Image.Image:
    base = _muted(draw)
    if kind == "plain":
        return Image.new("RGB", size, tuple(int(c) for c in base))
    if kind == "gradient":
        end = _muted(draw)
        while abs(end.mean() - base.mean()) < 60:
            end = _muted(draw)
        angle = draw.uniform(0, 2 * math.pi)
        grid = np.stack(np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16)), -1)
        share = (grid @ (math.cos(angle), math.sin(angle)) / 1.42 + 1) / 2
        return _enlarged(base + share[..., None] * (end - base), size, Image.Resampling.BILINEAR)
    # The grain grows with the picture, so that no size smooths it away.
    cells = [max(24, min(side, 112)) for side in (size[1], size[0])]
    noise = draw.normal(0, draw.uniform(18, 32), (*cells, 3 if draw.random() < 0.5 else 1))
    return _enlarged(base + noise, size, Image.Resampling.NEAREST)


def _enlarged(values: npt.NDArray[np.float64], size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).resize(size, how)


def _texture(draw: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Clouds of random colours at several scales, and over them, often, hills, stripes or scattered lines."""
    field = np.zeros((64, 64, 3))
    mix = draw.normal(0, 1, (3, 3))
    fade = draw.uniform(0.4, 0.9)
    for i, cells in enumerate((2, 4, 8, 16, 32, 64)):
        layer = draw.normal(0, 1, (cells, cells, 3)) @ (mix if draw.random() < 0.7 else np.ones((3, 3)) / 2)
        planes = [
            np.asarray(Image.fromarray(layer[..., c].astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        field += fade**i * np.stack(planes, -1)
    field = 128 + draw.uniform(-40, 40, 3) + draw.uniform(20, 60) * field / (field.std() + 1e-6)
    picture = _enlarged(field, size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    width, height = size
    style = int(draw.integers(4))
    if style == 1:  # hills
        for level in np.sort(draw.uniform(0.3, 0.95, int(draw.integers(1, 4)))):
            heights = np.cumsum(draw.normal(0, 0.05, 9)) + level
            ridge = [(width * i / 8, height * float(y)) for i, y in enumerate(heights)]
            pen.polygon([*ridge, (width, height), (0, height)], fill=_shade(draw))
    elif style == 2:  # stripes
        step = max(4, int(width * draw.uniform(0.04, 0.2)))
        for x in range(0, width, 2 * step):
            pen.rectangle((x, 0, x + step, height), fill=_shade(draw))
    elif style == 3:  # lines
        for _ in range(int(draw.integers(10, 60))):
            ends = draw.uniform(0, 1, 4) * (width, height, width, height)
            pen.line([float(e) for e in ends], fill=_shade(draw), width=max(1, width // int(draw.integers(20, 80))))
    return picture


def _shade(draw: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(c) for c in draw.integers(0, 256, 3))
