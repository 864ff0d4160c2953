"""How fast models of one size decode whose experts are kept in different precisions: ratios from one run.

    python -m benchmarks.experts --device cpu --dtype bfloat16 --random 1b --batch 1 4
    python -m benchmarks.experts --device cpu --dtype bfloat16 --random 1b --experts bf16 int8 --json experts.json

Each precision is a model of its own, of random weights of the same spread; all are in memory at once and take turns
step by step, so that a noisy machine is equally unkind to each. A ratio is the median, over rounds, of the first
precision's step time over another's: above 1 the other is faster.
"""

from __future__ import annotations

import argparse
from typing import Any, get_args, get_type_hints

import torch

from benchmarks.batch import Batch
from benchmarks.decode import Contender, alternate, steps_of
from benchmarks.report import environment, median, table, write_json
from benchmarks.sizes import SIZES
from benchmarks.subject import spread_routers
from mdinfer.loading import Loaded, describe_precision, load_model, parameter_count
from mdinfer.memory import format_bytes
from mdinfer.options import EngineConfig
from mdinfer.precision import Experts


def load(experts: Experts, options: argparse.Namespace) -> Loaded:
    given = EngineConfig(device=options.device, dtype=options.dtype, experts=experts, progress=False)
    loaded = load_model("random", given, config=SIZES[options.random])
    spread_routers(loaded.model)
    return loaded


def measure(models: dict[str, Loaded], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each batch size and precision."""
    found: dict[tuple[int, str], Contender] = {}
    for size in options.batch:
        for name, loaded in models.items():
            batch = Batch(loaded.model, size, options.prompt, options.tokens + 2, graphs=options.graphs)
            found[size, name] = Contender(name, size, steps_of(batch, options.prompt, ahead=options.ahead))
    device = next(iter(models.values())).model.device
    alternate(list(found.values()), options, torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    records = []
    for (size, _), contender in found.items():
        first = found[size, options.experts[0]]
        mine, theirs = ([median(turn) for turn in each.decode] for each in (contender, first))
        records.append(
            {
                **contender.record(options.prompt, None),
                "decode_ratio": _ratio(theirs, mine),
                "prefill_ratio": _ratio(first.prefill, contender.prefill),
            }
        )
    return records


def _ratio(first: list[float], other: list[float]) -> float:
    return median([a / b for a, b in zip(first, other, strict=True)])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = _parse(argv)
    models = {experts: load(experts, options) for experts in options.experts}
    device = next(iter(models.values())).model.device
    options.graphs = options.ahead = device.type == "cuda"
    result: dict[str, Any] = {
        "benchmark": "experts",
        "environment": environment(device),
        "model": f"random {options.random}",
        "parameters": parameter_count(SIZES[options.random]),
        "prompt": options.prompt,
        "tokens": options.tokens,
        "models": {
            name: {"precision": describe_precision(loaded.model), "bytes": loaded.weight_bytes}
            for name, loaded in models.items()
        },
    }
    print(f"{result['model']}: {result['parameters'] / 1e6:.0f} M parameters")
    for name, model in result["models"].items():
        print(f"{name}: {model['precision']}, {format_bytes(model['bytes'])}")
    print(", ".join(f"{k} {v}" for k, v in result["environment"].items()) + "\n")
    result["results"] = measure(models, options)
    first = options.experts[0]
    columns = ["batch", "experts", "decode ms", "best", "tokens/s", f"x {first}", "prefill ms", f"x {first}"]
    print(table(columns, [
        [r["batch"], r["name"], r["decode_ms"], r["decode_best_ms"], r["decode_tokens_per_s"], r["decode_ratio"],
         r["prefill_ms"], r["prefill_ratio"]]
        for r in result["results"]
    ]))  # fmt: skip
    write_json(options.json, result)
    return result


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = [each for each in get_args(get_type_hints(EngineConfig)["experts"]) if each != "auto"]
    parser.add_argument("--random", choices=SIZES, default="1b", help="make up weights of this size")
    parser.add_argument("--experts", nargs="+", choices=kinds, default=kinds, help="the first is compared with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], metavar="N")
    parser.add_argument("--prompt", type=int, default=200, help="positions of each prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to decode after each prefill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    options = parser.parse_args(argv)
    if min(options.tokens, options.rounds, *options.batch) < 1 or options.prompt < 2:
        parser.error("sizes are positive, a prompt has two positions")
    return options


if __name__ == "__main__":
    main()
