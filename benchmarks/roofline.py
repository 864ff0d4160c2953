"""The least time that decoding, prefill and vision can take on a chip.

    python -m benchmarks.roofline --chip H100
    python -m benchmarks.roofline --bandwidth 0.9 --bf16 120 --checkpoint PATH --batch 1 8 --context 800 3000
    python -m benchmarks.roofline --bare                     matrices, keys and values alone

Each kind of work takes the longer of moving its bytes and computing, one after the other; starting kernels and the
host take nothing. So these are floors, not forecasts. Experts are chosen evenly, see `benchmarks/costs.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import chips
from benchmarks.chips import Rates
from benchmarks.costs import (
    EXPERTS,
    KV,
    Cost,
    Precision,
    Rate,
    bare,
    decoding,
    distinct_experts,
    kv_bytes,
    prefilling,
    text_step,
    unfused_vision_bytes,
    vision_pass,
    weight_bytes,
)
from benchmarks.report import table, write_json
from benchmarks.sizes import SIZES
from mdinfer.checkpoint import find_checkpoint
from mdinfer.config import ModelConfig
from mdinfer.image import image_tiling
from mdinfer.loading import DEMO, DEMO_DIRECTORY

Result = dict[str, Any]

PICTURES = ((378, 378), (850, 600), (420, 500), (1112, 862))
QUESTIONS_PER_PICTURE = 2500 / 1509  # of ChartQA's test set
QUESTION = 45  # tokens of a question with its template
ANSWERS = (3, 30)
# Of experts, linears and cache.
_PRECISIONS: tuple[tuple[str, Rate, str], ...] = (
    *(("bf16", "bf16", kv) for kv in ("bf16", "fp8")),
    *(("fp8", "bf16", kv) for kv in ("bf16", "fp8")),
    ("fp8", "fp8", "fp8"),
    *(("int4", "bf16", kv) for kv in ("bf16", "fp8")),
    ("int4", "fp8", "fp8"),
)
_RATES: tuple[Rate, ...] = ("bf16", "fp8")
_FP8 = Precision(experts="fp8", linears="fp8", kv="fp8")


class Floors:
    """Of one model on one chip, in milliseconds."""

    def __init__(self, config: ModelConfig, rates: Rates, *, only_bulk: bool = False) -> None:
        self.config, self.rates, self._only_bulk = config, rates, only_bulk
        self.image = config.vision.positions + 1  # BOS is in its block

    def ms(self, cost: Cost) -> float:
        return 1e3 * self.rates.floor(bare(cost) if self._only_bulk else cost)

    def decode(self, batch: int, context: int, precision: Precision) -> float:
        return self.ms(text_step(self.config.text, decoding(batch, context), precision))

    def prefill(
        self, requests: int, prompt: int, precision: Precision, *, cached: int = 0, image: bool = True
    ) -> float:
        """Of all the requests together; prompts begin with a picture unless `image` is false."""
        step = prefilling(requests, prompt, cached=cached, block=self.image if image else 0)
        return self.ms(text_step(self.config.text, step, precision))

    def vision(self, crops: int, precision: Precision, pictures: int = 1) -> float:
        return self.ms(vision_pass(self.config.vision, crops, precision, pictures))

    def request(self, batch: int, answer: int, precision: Precision, *, seen: float, crops: int) -> float:
        """A request's share of the chip's time: `seen` of the pictures are cached, prefills come up to 8 at once."""
        together, prompt = min(8, batch), self.image + QUESTION
        first = self.vision(crops, precision) + self.prefill(together, prompt, precision) / together
        again = self.prefill(together, prompt, precision, cached=self.image) / together
        token = self.decode(batch, self.image + QUESTION + answer // 2, precision) / batch
        return (1 - seen) * first + seen * again + (answer - 1) * token


def decode_rows(floors: Floors, options: argparse.Namespace) -> Iterator[Result]:
    for experts, linears, kv in _PRECISIONS:
        for context in options.context:
            precision = Precision(experts=experts, linears=linears, kv=kv)
            ms = {batch: floors.decode(batch, context, precision) for batch in options.batch}
            yield {"experts": experts, "linears": linears, "kv": kv, "context": context, "ms": ms}


def prefill_rows(floors: Floors, options: argparse.Namespace) -> Iterator[Result]:
    prompt = floors.image + QUESTION
    for experts, linears, kv in _PRECISIONS:
        for cached in (0, floors.image) if kv == "fp8" else ():
            precision = Precision(experts=experts, linears=linears, kv=kv)
            ms = {n: floors.prefill(n, prompt, precision, cached=cached) for n in options.requests}
            yield {"experts": experts, "linears": linears, "kv": kv, "prompt": prompt, "cached": cached, "ms": ms}


def vision_rows(floors: Floors) -> Iterator[Result]:
    vision = floors.config.vision
    for width, height in PICTURES:
        tiling = image_tiling(height, width, vision)
        crops = 1 + tiling[0] * tiling[1]
        ms = {name: floors.vision(crops, Precision(linears=name)) for name in _RATES}
        unfused = 1e3 * unfused_vision_bytes(vision, crops) / floors.rates.bandwidth
        yield {"picture": f"{width} x {height}", "crops": crops, "ms": ms, "unfused_ms": unfused}


def request_rows(floors: Floors, options: argparse.Namespace) -> Iterator[Result]:
    tiling = image_tiling(600, 850, floors.config.vision)
    crops = 1 + tiling[0] * tiling[1]
    for precision in (Precision(), Precision(experts="fp8", kv="fp8"), _FP8):
        for seen in (0.0, 1 - 1 / QUESTIONS_PER_PICTURE):
            for answer in ANSWERS:
                ms = {
                    batch: floors.request(batch, answer, precision, seen=seen, crops=crops) for batch in options.batch
                }
                per_s = {batch: 1e3 / each for batch, each in ms.items()}
                names = {"experts": precision.experts, "linears": precision.linears, "kv": precision.kv}
                yield {**names, "seen": seen, "answer": answer, "per_s": per_s}


def main(argv: list[str] | None = None) -> Result:
    options, rates, config = _parse(argv)
    floors = Floors(config, rates, only_bulk=options.bare)
    moe = config.text.moe
    result: Result = {
        "benchmark": "roofline",
        "rates": asdict(rates),
        "bare": options.bare,
        "weight_bytes": {
            **{name: weight_bytes(config, Precision(experts=name)) for name in EXPERTS if name != "float32"},
            "fp8, linears too": weight_bytes(config, _FP8),
        },
        "kv_bytes": {name: sum(kv_bytes(config.text, name)) for name in KV if name != "float32"},
        "distinct_experts": {b: distinct_experts(b, moe.num_experts, moe.experts_per_token) for b in options.batch},
        "decode": list(decode_rows(floors, options)),
        "prefill": list(prefill_rows(floors, options)),
        "vision": list(vision_rows(floors)),
        "requests": list(request_rows(floors, options)),
    }
    _show(result, rates, config)
    write_json(options.json, result)
    return result


def _show(result: Result, rates: Rates, config: ModelConfig) -> None:
    print(rates)
    print("weights, GB: " + ", ".join(f"{name} {size / 1e9:.2f}" for name, size in result["weight_bytes"].items()))
    print("cache, KiB a position: " + ", ".join(f"{name} {size / 1024:g}" for name, size in result["kv_bytes"].items()))
    touched = ", ".join(f"{rows}: {count:.1f}" for rows, count in result["distinct_experts"].items())
    print(f"experts of {config.text.moe.num_experts} that a step of so many rows touches: {touched}")
    batches = [f"B={batch}" for batch in result["distinct_experts"]]
    rows = [[r["experts"], r["linears"], r["kv"], r["context"], *r["ms"].values()] for r in result["decode"]]
    print("\ndecode, ms a step\n" + table(["experts", "linears", "cache", "context", *batches], rows))
    requests = [f"x{n}" for n in result["prefill"][0]["ms"]]
    last = [f"each of {requests[-1]}"]
    rows = [
        [
            *(r[name] for name in ("experts", "linears", "prompt", "cached")),
            *r["ms"].values(),
            list(r["ms"].values())[-1] / int(requests[-1][1:]),
        ]
        for r in result["prefill"]
    ]
    print("\nprefill, ms, cache in fp8\n" + table(["experts", "linears", "prompt", "cached", *requests, *last], rows))
    rows = [[r["picture"], r["crops"], *r["ms"].values(), r["unfused_ms"]] for r in result["vision"]]
    print("\nvision, ms, by linears\n" + table(["picture", "crops", *_RATES, "more if nothing is fused"], rows))
    rows = [
        [
            *(r[name] for name in ("experts", "linears", "kv")),
            f"{r['seen']:.0%}",
            r["answer"],
            *(f"{n:.1f}" for n in r["per_s"].values()),
        ]
        for r in result["requests"]
    ]
    print("\nrequests/s at most: 850 x 600, 45 tokens of question; `seen` pictures are cached")
    print(table(["experts", "linears", "cache", "seen", "tokens", *batches], rows))


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, Rates, ModelConfig]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chips.add_options(parser, default="H100")
    add_config_options(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N")
    parser.add_argument("--context", type=int, nargs="+", default=[800, 2000], metavar="N")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="prefilled at once")
    parser.add_argument("--bare", action="store_true", help="leave out biases, norms, router, temperatures, row scales")
    parser.add_argument("--json", metavar="FILE", help="write everything computed")
    options = parser.parse_args(argv)
    if min(*options.batch, *options.context, *options.requests) < 1:
        parser.error("counts are positive")
    rates = chips.chosen(options, parser)
    assert rates is not None
    return options, rates, chosen_config(options)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """--checkpoint or --size, for `chosen_config`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", help="config.json, or a directory, file or repository id with one")
    source.add_argument("--size", choices=SIZES, default="full", help="one that benchmarks make up")


def chosen_config(options: argparse.Namespace) -> ModelConfig:
    if not options.checkpoint:
        return SIZES[options.size]
    if options.checkpoint == DEMO:
        return find_checkpoint(DEMO_DIRECTORY).config
    if Path(options.checkpoint).suffix == ".json":
        return ModelConfig.from_file(options.checkpoint)
    return find_checkpoint(options.checkpoint).config


if __name__ == "__main__":
    main()
