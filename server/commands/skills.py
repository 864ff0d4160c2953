"""`mdinfer query`, `caption`, `detect` and `point`: one request about one image."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mdinfer.errors import ConfigError
from mdinfer.request import Caption, Detect, Point, Query, Request
from mdinfer.result import Box, Result
from mdinfer.server.commands import loading
from mdinfer.server.commands.options import (
    SAMPLING,
    Commands,
    add_engine_options,
    add_model_option,
    add_sampling_options,
    stated,
)
from mdinfer.server.commands.terminal import note, show_json, show_stream

if TYPE_CHECKING:
    from mdinfer.result import XY

NO_IMAGE = "-"
DRAWN = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def add_to(commands: Commands) -> None:
    _add_query(commands)
    parser = commands.add_parser("caption", help="describe an image")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--length", choices=("short", "normal", "long"), default="normal")
    add_sampling_options(parser)
    _finish(parser, run_caption)
    for name, run, what in (("detect", run_detect, "boxes"), ("point", run_point, "centres")):
        parser = commands.add_parser(name, help=f"find the {what} of all objects of a kind")
        parser.add_argument("image", metavar="IMAGE")
        parser.add_argument("object", metavar="OBJECT", help='what to find, such as "red car"')
        parser.add_argument("--draw", metavar="OUT.png", help=f"write the image with its {what} drawn in")
        parser.add_argument("--max-objects", type=int, metavar="N", help="most objects to report")
        _finish(parser, run)


def _add_query(commands: Commands) -> None:
    parser = commands.add_parser(
        "query",
        help="ask a question about an image, or without one",
        epilog='examples:\n  mdinfer query photo.jpg "What is this?"\n  mdinfer query - "What is 2 + 2?"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", help="an image file, or - for a question without an image")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--reasoning", action="store_true", help="think first; the trace goes to stderr")
    add_sampling_options(parser)
    _finish(parser, run_query)


def _finish(parser: argparse.ArgumentParser, run: object) -> None:
    add_model_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object when the answer is complete")
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run_query(args: argparse.Namespace) -> int:
    image = None if args.image == NO_IMAGE else loading.read_image(args.image)
    request = Query(image=image, question=args.question, reasoning=args.reasoning, **stated(args, SAMPLING))
    return _run_text(args, request)


def run_caption(args: argparse.Namespace) -> int:
    image = loading.read_image(args.image)
    return _run_text(args, Caption(image=image, length=args.length, **stated(args, SAMPLING)))


def run_detect(args: argparse.Namespace) -> int:
    _check_draw(args.draw)
    image = loading.read_image(args.image)
    request = Detect(image=image, object=args.object, **stated(args, ("max_objects",)))
    result = _run_objects(args, request)
    _show_places(args, image, result.objects)
    return 0


def run_point(args: argparse.Namespace) -> int:
    _check_draw(args.draw)
    image = loading.read_image(args.image)
    request = Point(image=image, object=args.object, **stated(args, ("max_objects",)))
    result = _run_objects(args, request)
    _show_places(args, image, result.points)
    return 0


def _check_draw(path: str | None) -> None:
    """Whether --draw can be obeyed, before anything slow begins. Raises ConfigError."""
    if path is None:
        return
    folder, name = os.path.split(path)
    target = path if os.path.exists(path) else folder or "."
    if os.path.splitext(name)[1].lower() not in DRAWN:
        fault = f"the name must end in one of {', '.join(DRAWN)}"
    elif os.path.isdir(path):
        fault = "it is a directory"
    elif folder and not os.path.isdir(folder):
        fault = f"there is no directory {folder}"
    elif not os.access(target, os.W_OK):
        fault = f"{target} may not be written"
    else:
        return
    raise ConfigError(f"--draw {path or '(empty)'}: {fault}")


def _run_text(args: argparse.Namespace, request: Query | Caption) -> int:
    with loading.loaded_engine(args) as engine:
        handle = engine.submit(request)
        if args.json:
            _show_answer(request, handle.result())
        else:
            show_stream(handle)
    return 0


def _run_objects(args: argparse.Namespace, request: Detect | Point) -> Result:
    with loading.loaded_engine(args) as engine:
        result = engine.submit(request).result()
    if args.json:
        _show_answer(request, result)
    return result


def _show_answer(request: Request, result: Result) -> None:
    from mdinfer.server.answers import answer

    show_json(answer(request, result))


def _show_places(args: argparse.Namespace, image: bytes, places: Sequence[Box | XY]) -> None:
    """One line a place: its numbers, as fractions of the image's width and height."""
    if not args.json:
        for place in places:
            print(*(f"{value:.4f}" for value in place))
        if not places:
            note(f"no {args.object} was found")
    if args.draw is not None:
        from mdinfer.server.draw import draw_places

        draw_places(image, places, args.draw)
        note(f"wrote {args.draw}")
