"""Draw pictures of the demo's world, to try it with.

python -m benchmarks.demo.draw shapes.png --seed 7 --shapes 4
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.demo.pictures import draw_other, draw_scene, paint
from benchmarks.demo.seeing import caption_text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.draw", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="the picture to write; its suffix says the format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", type=int, choices=range(6), help="how many (default: any; 0: a picture of none)")
    arguments = parser.parse_args(argv)
    draw = np.random.default_rng(arguments.seed)
    if arguments.shapes == 0:
        scene = draw_other(draw)
    else:
        scene = draw_scene(draw, least=arguments.shapes or 1, most=arguments.shapes or 5)
    paint(scene).save(arguments.path)
    print(f"{scene.width} x {scene.height}: {caption_text(scene, 'long')}")


if __name__ == "__main__":
    main()
