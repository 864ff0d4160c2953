"""How far experts in fewer bits are from float32: `python -m benchmarks.precision`.

One layer of the published width with random weights, everything but the experts in float32: rows of the size of an
embedding are normalised, routed and go through the experts; their sum with what came in goes to the head. Attention is
left out. Errors are relative to the RMS of what float32 gives. Routing is the same in all, for the router stays exact.

Weights are normal numbers, then Student's t of 4 degrees of freedom, whose largest of 128 is twice a normal one's:
trained weights lie between the two. This says how large the errors are that quantising makes, not what answers lose.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import environment, table, write_json
from mdinfer.checkpoint import dequantise_rows, quantise_channels, quantise_groups, quantise_rows, random_weights
from mdinfer.checkpoint.tensors import one_thread
from mdinfer.config import ModelConfig
from mdinfer.kernels.int4 import INT4, dequantise
from mdinfer.kernels.int8 import INT8
from mdinfer.model.moondream import Moondream
from mdinfer.model.text import Block

_QUANTISERS = {"fp8": quantise_rows, "int8": quantise_channels, "int4": quantise_groups}
_FP8 = torch.float8_e4m3fn
KINDS = {"bf16": torch.bfloat16, "fp8": _FP8, "int8": INT8, "int4": INT4}


def _student_t(into: Tensor) -> Tensor:
    """Of 4 degrees of freedom, deviation 1: a normal number over the root of half of -log(uv), u and v uniform."""
    for part in into:
        squares = (torch.rand_like(part) * torch.rand_like(part)).clamp_(min=1e-30).log_().mul_(-0.5)
        part.normal_().div_(squares.sqrt_()).mul_(0.5**0.5)
    return into


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {"normal": Tensor.normal_, "student-t 4": _student_t}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = _parse(argv)
    torch.manual_seed(arguments.seed)
    config = _one_layer(arguments)
    result: dict[str, Any] = {
        "benchmark": "precision",
        "environment": environment(torch.device("cpu")),
        "rows": arguments.rows,
        "results": [record for draw in DRAWS for record in measure(config, draw, arguments.rows)],
    }
    moe = config.text.moe
    print(
        f"one layer: width {config.text.dim}, {moe.num_experts} experts of inner width {moe.expert_inner_dim}, "
        f"{moe.experts_per_token} a token; {arguments.rows} rows; errors relative to float32\n"
    )
    columns = ["weights", "experts", "bytes each", "weight %", "layer %", "logits %", "M weights/s"]
    print(table(columns, [list(record.values()) for record in result["results"]]))
    write_json(arguments.json, result)
    return result


@torch.inference_mode()
def measure(config: ModelConfig, draw: str, rows: int) -> list[dict[str, Any]]:
    """A record for each kind of experts."""
    exact = Moondream(config, device="cpu", max_context=1)
    random_weights(exact.weights())
    for name, values in exact.weights().items():
        if _is_expert(name):
            DRAWS[draw](values).mul_(values.shape[-1] ** -0.5)
    x = torch.randn(rows, config.text.dim) * 0.5
    layer, logits = _forward(exact, x)
    records = []
    for kind, dtype in KINDS.items():
        kept = Moondream(config, expert_dtype=torch.float32 if kind == "bf16" else dtype, device="cpu", max_context=1)
        with one_thread():  # as the loader does it
            seconds, error = _fill(kept.weights(), exact.weights(), kind)
        found, found_logits = _forward(kept, x)
        experts = {name: value for name, value in exact.weights().items() if _is_expert(name)}
        count = sum(value.numel() for value in experts.values())
        size = sum(v.nbytes for name, v in kept.weights().items() if _is_expert(name) or name.endswith(".scale"))
        records.append(
            {
                "weights": draw,
                "experts": kind,
                "bytes": 2.0 if kind == "bf16" else round(size / count, 3),
                "weight_percent": 100 * error,
                "layer_percent": 100 * _share(found, layer),
                "logits_percent": 100 * _share(found_logits, logits),
                "quantised_per_us": count / seconds / 1e6,
            }
        )
    return records


def _forward(model: Moondream, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the experts give, and the logits."""
    block = model.text.blocks[0]
    assert isinstance(block, Block)
    y = block.mlp(block.ln(x))
    return y, model.text.logits(x + y)


def _fill(targets: dict[str, Tensor], exact: dict[str, Tensor], kind: str) -> tuple[float, float]:
    """Seconds that quantising took, and the error of the experts' weights."""
    seconds, wrong, whole = 0.0, 0.0, 0.0
    for name, values in exact.items():
        if not _is_expert(name):
            targets[name].copy_(values)
            continue
        for e, expert in enumerate(values):
            start = time.perf_counter()
            if kind == "bf16":
                targets[name][e].copy_(expert.bfloat16())
                found = targets[name][e]
            else:
                weight, scale = _QUANTISERS[kind](expert)
                targets[name][e].copy_(weight)
                targets[name.removesuffix("weight") + "scale"][e].copy_(scale)
            seconds += time.perf_counter() - start
            if kind == "int4":
                found = dequantise(weight, scale, expert.shape[1], torch.float32)
            elif kind != "bf16":
                found = dequantise_rows(weight, scale)
            wrong += float((found - expert).square().sum())
            whole += float(expert.square().sum())
    return seconds, (wrong / whole) ** 0.5


def _is_expert(name: str) -> bool:
    return name.startswith("text.blocks.0.mlp.fc") and name.endswith(".weight")


def _share(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _one_layer(arguments: argparse.Namespace) -> ModelConfig:
    """A text decoder of one layer; the parts that see are as small as can be."""
    dim = arguments.dim
    moe = {
        "num_experts": arguments.experts,
        "experts_per_token": arguments.chosen,
        "expert_inner_dim": arguments.inner,
        "start_layer": 0,
    }
    vision = {"enc_dim": 32, "enc_n_heads": 1, "enc_n_layers": 1, "enc_ff_dim": 32, "proj_inner_dim": 32}
    return ModelConfig.from_dict(
        {
            "text": {"dim": dim, "ff_dim": dim, "n_layers": 1, "n_heads": dim // 64, "moe": moe},
            "vision": {"proj_out_dim": dim, **vision},
            "region": {"dim": dim},
        }
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--chosen", type=int, default=8, help="experts of a token")
    parser.add_argument("--inner", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
