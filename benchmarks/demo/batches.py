"""Training batches: pictures and dialogues drawn from a seed, packed into rows.

Each batch is a function of the run's seed and its own number, so that a run resumed at step n goes on with the very
batches it would have had.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import torch.multiprocessing as multiprocessing

from benchmarks.demo.dialogue import Dialogue, Exchange
from benchmarks.demo.pairs import ABOUT_TWO_NAMELESS, ABOUT_TWO_PICTURES
from benchmarks.demo.pictures import Scene, draw_other, draw_scene, paint, recoloured, reshaped
from benchmarks.demo.rows import ROW, RowBuilder, Rows, Speller, Stream
from benchmarks.demo.seeing import (
    ABOUT_A_PICTURE,
    by_trait,
    caption,
    count,
    describe,
    list_shapes,
    objects,
    odd,
    presence,
)
from benchmarks.demo.talking import ABOUT_NOTHING, aside, system_message
from benchmarks.demo.words import BACKGROUNDS, COLOURS, KINDS
from mdinfer.config import ModelConfig, VisionConfig
from mdinfer.image import prepare_image

PICTURE_ROWS, PAIR_ROWS, LATER_ROWS, TALK_ROWS = 12, 4, 2, 10
SIGHT_PICTURES = 64
NAMELESS_PICTURES = 16
"""Rows of a batch: one picture, two pictures, a picture in a later turn, no picture; pictures of one without
rows; pictures beside the rows, of colours or kinds without a name, for sight alone."""

GROUNDS = (*BACKGROUNDS, "other")

_TRIES = 12  # dialogues drawn for what is left of a row before it is given up
_LEAST_ROOM = 12
_EMPTY_SHARE = 0.08  # of pictures that show no shapes
_NAMELESS_SHARE = 0.35  # of pictures and pairs with colours or kinds without a name

Questions = tuple[tuple[float, ...], tuple[Callable[..., Dialogue | None], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What the vision tower takes of some pictures, and what it is to see in them.

    crops      (n, side, side, 3) uint8 of all pictures; a picture of one tile has its whole view only once
    tiles      (pictures, 5) int64 into crops: the whole view, then up to four tiles, the last one repeated
    tilings    rows and columns of each picture's tiles
    cells      (pictures, G * G, 7) float32, what the training-only heads learn: kind + 1 or 0 where no shape
               covers the cell's middle, colour + 1 or 0 (either -1: it has no name), then the shape's x, y, w, h; last,
               1 where a centre is
    grounds    (pictures,) int64, index into GROUNDS
    """

    crops: npt.NDArray[np.uint8]
    tiles: npt.NDArray[np.int64]
    tilings: list[tuple[int, int]]
    cells: npt.NDArray[np.float32]
    grounds: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """rows, and the pictures that stand in them, in order, then others; no rows where only sight is trained."""

    rows: Rows | None
    pictures: Pictures


class BatchMaker:
    """Draws batches; `mix` multiplies the shares of ABOUT_A_PICTURE and ABOUT_NOTHING by name.

    `parts`: each batch is one part of so many that make a whole one.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, config: ModelConfig, mix: Mapping[str, float], parts: int = 1
    ) -> None:
        self._rows = [-(-rows // parts) for rows in (PICTURE_ROWS, PAIR_ROWS, LATER_ROWS, TALK_ROWS)]
        self._nameless = -(-NAMELESS_PICTURES // parts)
        self._sights = -(-SIGHT_PICTURES // parts)
        self._speller, self._vision = Speller(tokenizer, config), config.vision
        self._seeing = _shares(ABOUT_A_PICTURE, mix)
        self._talking = _shares(ABOUT_NOTHING, mix)

    def batch(self, seed: int, number: int) -> Batch:
        draw = np.random.default_rng((seed, number))
        builder = RowBuilder(sum(self._rows))
        single, pair, later, talk = self._rows
        scenes: list[Scene] = []
        for _ in range(single):
            scene, about = self._scene(draw), self._about
            if scene.shapes and draw.random() < _NAMELESS_SHARE:
                (scene,), about = _nameless(draw, [scene]), by_trait
            scenes.append(scene)
            builder.begin(self._speller.opening(1))
            self._fill(builder, functools.partial(about, draw, scene))
            self._finish_row(draw, builder)
        for _ in range(pair):
            two, about_two = [draw_scene(draw, largest=_small(draw)) for _ in range(2)], ABOUT_TWO_PICTURES
            if draw.random() < _NAMELESS_SHARE:
                two, about_two = _nameless(draw, two), ABOUT_TWO_NAMELESS
            scenes += two
            builder.begin(self._speller.opening(2))
            self._fill(builder, functools.partial(_about_two, draw, about_two, *two))
            self._finish_row(draw, builder)
        for _ in range(later):
            scene = draw_scene(draw, largest=320)
            scenes += self._later(draw, builder, scene)
            self._fill(builder, functools.partial(self._question, draw, scene))
            self._finish_row(draw, builder)
        for _ in range(talk):
            self._finish_row(draw, builder)
        for i in range(self._nameless):
            scenes.append((recoloured, reshaped)[i % 2](draw, draw_scene(draw, largest=112)))
        return Batch(rows=builder.finish(), pictures=_pictures(scenes, self._vision))

    def sight(self, seed: int, number: int) -> Batch:
        """Pictures alone."""
        draw = np.random.default_rng((seed, number, 1))
        scenes = [self._scene(draw) for _ in range(self._sights)]
        shown = [scene for scene in scenes if scene.shapes]
        scenes += [(recoloured, reshaped)[i % 2](draw, scene) for i, scene in enumerate(shown[::4])]
        return Batch(rows=None, pictures=_pictures(scenes, self._vision))

    def _scene(self, draw: np.random.Generator) -> Scene:
        """Mostly small, for speed (a single tile costs the tower a fifth of four); few without shapes."""
        largest = int(draw.choice((900, 320, 320, 320, 320, 320, 112, 112, 112, 112)))
        if draw.random() < _EMPTY_SHARE:
            return draw_other(draw, largest=largest)
        return draw_scene(draw, largest=largest)

    def _about(self, draw: np.random.Generator, scene: Scene) -> Dialogue | None:
        """A question about the picture; one in six, a chat of two or three."""
        if not scene.shapes:
            makers = (describe, describe, caption, list_shapes, count, presence, objects, odd)
            return makers[int(draw.integers(len(makers)))](draw, scene)
        shares, makers_ = self._seeing
        made = makers_[int(draw.choice(len(makers_), p=shares))](draw, scene)
        if made is None or made.skill != "query":
            return made
        chat = draw.random() < 0.17
        before: list[Exchange] = []
        if chat:
            for _ in range(int(draw.integers(1, 3))):
                other = aside(draw) if draw.random() < 0.25 else _first(self._question(draw, scene))
                if other is not None:
                    before.append(Exchange(question=other.question, answer=other.answer, refs=other.refs))
        last = made.exchanges[-1]
        if chat and draw.random() < 0.2:
            last = aside(draw)
        return Dialogue(task=made.task, exchanges=(*before, last), system=system_message(draw))

    def _question(self, draw: np.random.Generator, scene: Scene) -> Dialogue | None:
        shares, makers = self._seeing
        made = makers[int(draw.choice(len(makers), p=shares))](draw, scene)
        return made if made is not None and made.skill == "query" else None

    def _later(self, draw: np.random.Generator, builder: RowBuilder, scene: Scene) -> list[Scene]:
        """Begin a group whose prefix is a turn, with or without a picture, and then the picture of `scene`."""
        earlier = draw_scene(draw, largest=320) if draw.random() < 0.5 else None
        exchange = None
        while exchange is None:
            exchange = aside(draw) if earlier is None else _first(self._question(draw, earlier))
        prefix = self._speller.opening(0 if earlier is None else 1)
        plain = Exchange(question=exchange.question, answer=exchange.answer, refs=exchange.refs)
        self._speller.exchange(prefix, plain, system_message(draw), last=False)
        self._speller.picture(prefix)
        builder.begin(prefix)
        return [scene] if earlier is None else [earlier, scene]

    def _fill(self, builder: RowBuilder, make: Callable[[], Dialogue | None]) -> None:
        """Segments until few positions are left or none that fits is drawn."""
        tries = _TRIES
        while builder.room >= _LEAST_ROOM and tries:
            made = make()
            body = self._speller.body(made) if made is not None else None
            if body is None or len(body) > builder.room:
                tries -= 1
                continue
            builder.segment(body)

    def _finish_row(self, draw: np.random.Generator, builder: RowBuilder) -> None:
        """Dialogues without pictures in what is left of the row, each a group of its own."""
        shares, makers = self._talking
        tries = _TRIES
        while builder.room >= _LEAST_ROOM and tries:
            made = makers[int(draw.choice(len(makers), p=shares))](draw)
            assert made is not None
            stream = _joined(self._speller.opening(0), self._speller.body(made))
            if len(stream) > builder.room:
                tries -= 1
                continue
            builder.begin(stream)
        builder.next_row()


def batches(
    tokenizer: tokenizers.Tokenizer, config: ModelConfig, mix: Mapping[str, float], *, seed: int, first: int, sight: int
) -> Iterator[Batch]:
    """Batches number `first` and on, made by a process of its own; those before `sight` are pictures only."""
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[Batch] = context.Queue(maxsize=6)

    def produce() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the trainer's own handlers come with the fork
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
        maker, number = BatchMaker(tokenizer, config, mix), first
        while True:
            queue.put((maker.sight if number < sight else maker.batch)(seed, number))
            number += 1

    process = context.Process(target=produce, daemon=True)
    process.start()
    try:
        while True:
            yield queue.get(timeout=120)
    finally:
        process.terminate()
        process.join()
        queue.cancel_join_thread()


def _about_two(
    draw: np.random.Generator, makers: Sequence[Callable[..., Dialogue | None]], first: Scene, second: Scene
) -> Dialogue | None:
    return makers[int(draw.integers(len(makers)))](draw, first, second)


def _nameless(draw: np.random.Generator, scenes: list[Scene]) -> list[Scene]:
    """The scenes with some shapes' colours, or else some shapes' kinds, replaced by such as have no name."""
    change = recoloured if draw.random() < 0.4 else reshaped
    return [change(draw, scene, 0.5) for scene in scenes]


def _small(draw: np.random.Generator) -> int:
    return 320 if draw.random() < 0.5 else 112


def _shares(makers: Mapping[str, tuple[float, Callable[..., Dialogue | None]]], mix: Mapping[str, float]) -> Questions:
    shares = np.array([share * mix.get(name, 1.0) for name, (share, _) in makers.items()])
    return tuple(shares / shares.sum()), tuple(make for _, make in makers.values())


def _first(dialogue: Dialogue | None) -> Exchange | None:
    return None if dialogue is None else dialogue.exchanges[0]


def _joined(first: Stream, second: Stream) -> Stream:
    return Stream(
        first.tokens + second.tokens,
        first.kinds + second.kinds,
        first.values + second.values,
        first.learned + second.learned,
        first.blocks,
    )


def _pictures(scenes: list[Scene], vision: VisionConfig) -> Pictures:
    crops: list[npt.NDArray[np.uint8]] = []
    tiles, tilings = np.zeros((len(scenes), 5), np.int64), []
    for i, scene in enumerate(scenes):
        made = prepare_image(paint(scene), vision, exif=False, max_pixels=1 << 24)
        first, count = len(crops), made.tiling[0] * made.tiling[1]
        crops += list(made.pixels[:1] if count == 1 else made.pixels)
        tiles[i] = first + np.minimum(np.arange(5), 0 if count == 1 else count)
        tilings.append(made.tiling)
    cells = np.stack([_cells(scene, vision.grid) for scene in scenes])
    grounds = np.array([GROUNDS.index(scene.background) for scene in scenes])
    return Pictures(crops=np.stack(crops), tiles=tiles, tilings=tilings, cells=cells, grounds=grounds)


def _cells(scene: Scene, grid: int) -> npt.NDArray[np.float32]:
    kinds, colours = list(KINDS), list(COLOURS)
    cells = np.zeros((grid, grid, 7), np.float32)
    middles = (np.arange(grid) + 0.5) / grid
    for shape in scene.shapes:
        columns = np.abs(middles - shape.x) <= shape.w / 2
        rows = np.abs(middles - shape.y) <= shape.h / 2
        at = int(shape.y * grid), int(shape.x * grid)
        covered = np.outer(rows, columns)
        covered[at] = True
        cells[covered, :6] = (
            kinds.index(shape.kind) + 1 if shape.kind in kinds else -1,
            colours.index(shape.colour) + 1 if shape.colour in colours else -1,
            shape.x,
            shape.y,
            shape.w,
            shape.h,
        )
        cells[at[0], at[1], 6] = 1
    return cells.reshape(grid * grid, 7)


__all__ = ["ROW", "Batch", "BatchMaker", "Pictures", "batches"]
