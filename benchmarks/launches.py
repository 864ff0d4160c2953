"""What a step consists of, counted without a GPU: starts of kernels, bytes that move, and the host's own time.

    python -m benchmarks.launches
    python -m benchmarks.launches --experts fp8 --kv fp8 --batch 1 64 --json out.json

The full-size model goes through real steps on tensors without values, see `benchmarks/trace.py`; what each start is
given says what it moves. Of experts a step reads the expected number, of the cache the positions that were there
before it. Activations are the buffers that starts hand to each other, whole, once for each that takes them; much of
that stays in the chip's cache. The bytes of weights and cache are compared with those of the floor, which come from
the model's sizes alone (`benchmarks/costs.py`): exits with 1 where they differ by more than a hundredth.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from benchmarks import costs
from benchmarks.batch import Batch
from benchmarks.costs import Precision, decoding, prefilling
from benchmarks.host import host_times
from benchmarks.movement import Moved, TracedModel
from benchmarks.precisions import KV_TYPES
from benchmarks.report import environment, table, write_json
from benchmarks.roofline import add_config_options, chosen_config
from benchmarks.trace import Trace
from mdinfer.config import ModelConfig

Record = dict[str, Any]

NEAR = 0.01  # of the floor's bytes
_META = torch.device("meta")
_TILING = (2, 4)  # of 850 x 600


def measure(config: ModelConfig, options: argparse.Namespace) -> list[Record]:
    """A record for each kind of step."""
    model = TracedModel(config, options.experts)
    precision = Precision(experts=options.experts, kv=options.kv)
    image = config.vision.positions + 1
    found = [_decode(model, n, options.context, precision) for n in options.batch]
    found.append(_prefill(model, image + 45, 0, precision))
    found.append(_prefill(model, image + 45, image, precision))
    found.append(_vision(model, precision))
    return found


def _decode(model: TracedModel, size: int, context: int, precision: Precision) -> Record:
    batch = Batch(model.model, size, context, 4, kv=precision.kv, graphs=True)
    batch.commit(batch.plan())
    for _ in range(2):  # a graph's buffers are made the first time
        downloads: list[torch.Tensor] = []
        plan = batch.plan()
        with model.tracing() as trace, _kept(downloads):
            batch.runner.launch(plan)
        batch.commit(plan)
    cost = costs.text_step(model.model.config.text, decoding(size, plan.decode[0].start), precision)
    moved = model.moved(trace.starts, size, plan, batch.cache)
    return _record(f"decode, batch {size}", model, trace, moved, cost, len(downloads))


def _prefill(model: TracedModel, prompt: int, cached: int, precision: Precision) -> Record:
    batch, downloads = Batch(model.model, 1, prompt, 4, kv=precision.kv, image=True), list[torch.Tensor]()
    if cached:
        batch.commit(batch.plan())
        batch.again(prompt)
    plan = batch.plan()
    [chunk] = plan.prefill
    assert (chunk.start, chunk.end) == (cached, prompt)
    with model.tracing() as trace, _kept(downloads):
        batch.runner.launch(plan)
    step = prefilling(1, prompt, cached=cached, block=model.model.config.vision.positions + 1)
    cost = costs.text_step(model.model.config.text, step, precision)
    moved = model.moved(trace.starts, prompt - cached, plan, batch.cache)
    return _record(f"prefill, {prompt - cached} after {cached}", model, trace, moved, cost, len(downloads))


def _vision(model: TracedModel, precision: Precision) -> Record:
    config, crops = model.model.config.vision, 1 + _TILING[0] * _TILING[1]
    pixels = torch.empty(crops, config.crop_size, config.crop_size, 3, dtype=torch.uint8, device=_META)
    with model.tracing() as trace:
        model.model.vision(pixels, [_TILING], crops)
    moved = model.moved(trace.starts, 0, None, None)
    cost = tuple(part for part in costs.vision_pass(config, crops, precision) if part.name != "pixels")
    return _record(f"vision, {crops} crops", model, trace, moved, cost, 0)


@contextmanager
def _kept(downloads: list[torch.Tensor]) -> Iterator[None]:
    """What a step would send to the host, which needs memory that only a GPU's driver can give."""

    def copy(part: torch.Tensor) -> torch.Tensor:
        downloads.append(part)
        return part

    with mock.patch("mdinfer.flight._host_copy", copy):
        yield


def _record(name: str, model: TracedModel, trace: Trace, moved: Moved, cost: costs.Cost, downloads: int) -> Record:
    kinds = Counter(start.kind for start in trace.starts)
    products = sum(start.name.startswith(("linear", "mm", "addmm", "bmm")) for start in trace.starts)
    sparse = model.model.config.text.moe.start_layer
    layers = [model.layer(0)]
    if not name.startswith("vision") and 0 < sparse < model.model.config.text.n_layers - 1:
        layers.append(model.layer(sparse))
    floor = sum(part.bytes for part in cost)
    return {
        "name": name,
        "kernels": kinds["kernel"],
        "products": products,
        "other": kinds["torch"] - products,
        "starts": kinds["kernel"] + kinds["torch"],
        "layers": layers,
        "copies": [kinds["upload"], downloads],
        "by_name": dict(Counter(start.name for start in trace.starts if start.kind != "upload")),
        "weight_bytes": moved.weights,
        "cache_bytes": moved.cache,
        "activation_bytes": moved.activations,
        "floor_bytes": floor,
        "of_floor": (moved.weights + moved.cache) / floor,
    }


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    config = chosen_config(options)
    records = measure(config, options)
    print(
        table(
            ["step", "kernels", "products", "other", "starts", "a layer", "to, from host", "weights MB", "cache MB",
             "floor MB", "of floor", "activations MB"],
            [
                [
                    r["name"], r["kernels"], r["products"], r["other"], r["starts"], " / ".join(map(str, r["layers"])),
                    ", ".join(map(str, r["copies"])), f"{r['weight_bytes'] / 1e6:.1f}", f"{r['cache_bytes'] / 1e6:.1f}",
                    f"{r['floor_bytes'] / 1e6:.1f}", f"{r['of_floor']:.4f}", f"{r['activation_bytes'] / 1e6:.1f}",
                ]
                for r in records
            ],
        )
    )  # fmt: skip
    if options.names:
        for r in records:
            print(f"{r['name']}: " + ", ".join(f"{count} {name}" for name, count in r["by_name"].items()))
    print("a layer: dense / with experts, each with the sum and LayerNorm that end it; of vision, a block")
    host = [host_times(config, n, options.context, options.steps) for n in options.batch]
    columns = ["batch", "plan", "pack", "read", "commit", "all"]
    print("\nhost, microseconds a decoding step, medians\n" + table(columns, [[h[c] for c in columns] for h in host]))
    off = [r["name"] for r in records if abs(r["of_floor"] - 1) > NEAR]
    for name in off:
        print(f"OFF the floor's bytes: {name}")
    write_json(
        options.json,
        {
            "benchmark": "launches",
            "environment": environment(torch.device("cpu")),
            "experts": options.experts,
            "kv": options.kv,
            "context": options.context,
            "results": records,
            "host": host,
        },
    )
    return 1 if off else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.launches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    parser.add_argument("--experts", choices=("bf16", "fp8", "int4"), default="bf16")
    parser.add_argument("--kv", choices=KV_TYPES, default="bf16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N")
    parser.add_argument("--context", type=int, default=800, help="positions before a decoding step")
    parser.add_argument("--steps", type=int, default=300, help="whose host time is measured")
    parser.add_argument("--names", action="store_true", help="list what is started")
    parser.add_argument("--json", metavar="FILE", help="write everything counted")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
