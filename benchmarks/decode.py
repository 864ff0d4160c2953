"""How long prefill and decoding take: ms and tokens/s by batch size, without the engine's threads around them.

    python -m benchmarks.decode --checkpoint PATH --device cpu
    python -m benchmarks.decode --random 200m --device cpu --dtype float32 --batch 1 4 --plain
    python -m benchmarks.decode --random full --device cpu --dtype bfloat16 --batch 1 --tokens 8

All contenders take turns step by step, so that a noisy machine is equally unkind to each; ratios are the figures
to trust. `--plain` adds a straightforward torch decoder (`benchmarks/plain.py`) on the same weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.plain import PlainDecoder
from benchmarks.report import environment, median, table, write_json
from benchmarks.sizes import SIZES
from mdinfer.decode_table import State
from mdinfer.image import Crops, image_tiling
from mdinfer.loading import Loaded, describe_precision, load_model, parameter_count
from mdinfer.memory import format_bytes
from mdinfer.model.batch import KVCache
from mdinfer.options import EngineConfig
from mdinfer.pages import PagePool
from mdinfer.prefill_step import StepBudget
from mdinfer.prompts import PromptBuilder
from mdinfer.runner import Runner
from mdinfer.scheduler import Scheduler
from mdinfer.sequence import SamplingParams, Sequence

PAGE_SIZE = 32
_KV_TYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
_WARM_UP = 2  # decoding steps of the first round


class Batch:
    """`size` sequences of random text on a cache of their own; the first step prefills, all later ones decode."""

    def __init__(self, loaded: Loaded, size: int, prompt: int, tokens: int, seed: int, kv: str = "auto") -> None:
        model, text = loaded.model, loaded.model.config.text
        most = prompt + max(tokens, _WARM_UP) + 1
        pages = size * -(-most // PAGE_SIZE)
        cache = KVCache.allocate(
            text,
            pages=pages,
            page_size=PAGE_SIZE,
            dtype=_KV_TYPES.get(kv, model.dtype),
            device=model.device,
        )
        for pages_of in (cache.k, cache.v):  # as in an engine at work, and as the plain decoder's, memory is there
            pages_of.zero_()
        self._runner = Runner(model, cache, max_batch_size=size, vision_crops=13)
        self._scheduler = Scheduler(
            PagePool(pages, PAGE_SIZE),
            None,
            self._runner.follows,
            max_batch_size=size,
            budget=StepBudget(prefill_tokens=1 << 20, vision_crops=13),
        )
        draw = np.random.default_rng(seed)
        for _ in range(size):
            self._scheduler.add(
                Sequence(
                    prompt=PromptBuilder(0, 0).text(_random_ids(loaded, prompt, draw)).build(),
                    state=State.ANSWER,
                    sampling=SamplingParams(),
                    max_positions=most,
                )
            )

    def step(self) -> None:
        plan = self._scheduler.plan()
        assert plan is not None
        self._scheduler.commit(plan, self._runner.launch(plan).read().tokens)


def _random_ids(loaded: Loaded, prompt: int, draw: np.random.Generator) -> list[int]:
    """After BOS."""
    ids: list[int] = draw.integers(16, loaded.model.config.text.vocab_size, prompt - 1).tolist()
    return ids


def _plain(loaded: Loaded, prompt: int, tokens: int, seed: int) -> Callable[[], None]:
    """As Batch.step for the first sequence of that batch, on the plain decoder."""
    decoder = PlainDecoder(loaded.model.config, loaded.model.weights(), prompt + tokens + 1)
    pending = torch.tensor([0, *_random_ids(loaded, prompt, np.random.default_rng(seed))])

    def step() -> None:
        nonlocal pending
        pending = decoder.forward(pending).argmax()[None]

    return step


def measure(loaded: Loaded, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a contender: prefill and decode times in ms, medians over rounds and steps."""
    names = [*(f"mdinfer, batch {size}" for size in arguments.batch), *(["plain torch"] if arguments.plain else [])]
    sizes = [*arguments.batch, *([1] if arguments.plain else [])]
    prefill: list[list[float]] = [[] for _ in names]
    decode: list[list[float]] = [[] for _ in names]
    for turn in range(arguments.rounds + 1):  # the first one warms up
        steps = [Batch(loaded, n, arguments.prompt, arguments.tokens, turn, arguments.kv).step for n in arguments.batch]
        if arguments.plain:
            steps.append(_plain(loaded, arguments.prompt, arguments.tokens, turn))
        for i in range(1 + (arguments.tokens if turn else _WARM_UP)):
            for times, step in zip(decode if i else prefill, steps, strict=True):
                start = time.perf_counter()
                step()
                if loaded.model.device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    times.append(1e3 * (time.perf_counter() - start))
    return [
        {
            "name": name,
            "batch": size,
            "prefill_ms": median(p),
            "prefill_best_ms": min(p),
            "prefill_tokens_per_s": 1e3 * size * arguments.prompt / median(p),
            "decode_ms": median(d),
            "decode_best_ms": min(d),
            "decode_tokens_per_s": 1e3 * size / median(d),
        }
        for name, size, p, d in zip(names, sizes, prefill, decode, strict=True)
    ]


@torch.inference_mode()
def measure_vision(loaded: Loaded, rounds: int) -> dict[str, Any]:
    """A picture of 850 x 600 through the vision tower, without decoding and resizing it."""
    config, model = loaded.model.config.vision, loaded.model
    tiling = image_tiling(600, 850, config)
    count = 1 + tiling[0] * tiling[1]
    side = config.crop_size
    crops = Crops(
        pixels=np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        tiling=tiling,
        width=850,
        height=600,
        digest=b"",
    )
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        model.vision(torch.from_numpy(crops.pixels).to(model.device), [tiling], 13)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return {"crops": count, "vision_ms": median(times[1:])}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    options = EngineConfig(device=arguments.device, dtype=arguments.dtype, experts=arguments.experts)
    start = time.perf_counter()
    loaded = load_model(
        arguments.checkpoint or "random",
        options,
        config=None if arguments.checkpoint else SIZES[arguments.random],
    )
    result: dict[str, Any] = {
        "benchmark": "decode",
        "environment": environment(loaded.model.device),
        "model": arguments.checkpoint or f"random {arguments.random}",
        "parameters": parameter_count(loaded.model.config),
        "precision": describe_precision(loaded.model) + ("" if arguments.kv == "auto" else f", cache {arguments.kv}"),
        "load_s": time.perf_counter() - start,
        "prompt": arguments.prompt,
        "tokens": arguments.tokens,
    }
    print(
        f"{result['model']}: {result['parameters'] / 1e6:.0f} M parameters, {result['precision']}, "
        f"{format_bytes(loaded.weight_bytes)}, ready in {result['load_s']:.1f} s\n"
        f"{', '.join(f'{k} {v}' for k, v in result['environment'].items())}\n"
    )
    if not arguments.no_vision:
        result["vision"] = measure_vision(loaded, arguments.rounds)
        print(f"vision, {result['vision']['crops']} crops: {result['vision']['vision_ms']:.1f} ms\n")
    result["results"] = measure(loaded, arguments)
    first = result["results"][0]
    print(
        table(
            ["", "prefill ms", "best", "tokens/s", "decode ms", "best", "tokens/s", f"x {first['name']}"],
            [
                [
                    r["name"],
                    r["prefill_ms"],
                    r["prefill_best_ms"],
                    r["prefill_tokens_per_s"],
                    r["decode_ms"],
                    r["decode_best_ms"],
                    r["decode_tokens_per_s"],
                    r["decode_tokens_per_s"] / first["decode_tokens_per_s"],
                ]
                for r in result["results"]
            ],
        )
    )
    if loaded.model.device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated(loaded.model.device)
        print(f"\n{format_bytes(result['peak_bytes'])} of the GPU's memory at the peak")
    write_json(arguments.json, result)
    return result


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", help='directory, file or repository id; "demo" for the built-in one')
    source.add_argument("--random", choices=SIZES, default="200m", help="make up weights of this size")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--experts", default="auto", choices=("auto", "bf16", "fp8", "int4"))
    parser.add_argument("--kv", default="auto", choices=("auto", *_KV_TYPES), help="keys and values in the cache")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], metavar="N")
    parser.add_argument("--prompt", type=int, default=200, help="positions of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to decode after each prefill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="compare with a plain torch decoder (CPU, no fp8)")
    parser.add_argument("--no-vision", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    arguments = parser.parse_args(argv)
    if arguments.plain and arguments.experts in ("fp8", "int4"):
        parser.error(f"--plain has no {arguments.experts} experts")
    return arguments


if __name__ == "__main__":
    main()
