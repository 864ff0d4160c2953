"""Which card runs the model in which precision, and how many requests its cache holds: computed, without a GPU.

    python -m benchmarks.memory
    python -m benchmarks.memory --card 10 20 --tokens 2000 --markdown

Weights are all that loading allocates, scales and tables included. The workspace is the most that the engine's worst
steps have in use at once (`mdinfer/workspace.py`), counted on tensors without values; pages are those that the engine
would give the cache of what is left. Not counted but assumed: what the driver, the libraries and the kernels' code
take (`--reserved`). Weights in int4 have a scale for every 128.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch

from benchmarks.costs import Precision, weight_bytes
from benchmarks.precisions import EXPERT_TYPES, KV_TYPES, LINEAR_TYPES
from benchmarks.report import markdown, table, write_json
from benchmarks.roofline import add_config_options, chosen_config
from benchmarks.trace import allocating
from mdinfer.config import ModelConfig
from mdinfer.errors import ConfigError
from mdinfer.memory import cache_pages
from mdinfer.model.batch import KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.options import EngineConfig
from mdinfer.workspace import whole_workspace, worst_steps

CARDS = (8, 12, 16, 24, 32, 48, 80, 141)
EXPERTS = ("bf16", "fp8", "int4")
SPARING: dict[str, Any] = {
    "max_batch_size": 8, "prefill_tokens": 1024, "vision_crops": 4, "image_cache": 8, "cuda_graphs": False
}  # fmt: skip
_META = torch.device("meta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that a precision needs beside the cache, and of a page of it."""

    weights: int
    workspace: int
    page: int

    @classmethod
    def of(cls, config: ModelConfig, experts: str, kv: str, options: EngineConfig, *, linears: str = "bf16") -> Need:
        with allocating() as loaded:
            model = Moondream(
                config,
                dtype=torch.bfloat16,
                expert_dtype=EXPERT_TYPES.get(experts),
                linear_dtype=LINEAR_TYPES[linears],
                device=_META,
            )
        weights = loaded()
        if experts not in EXPERT_TYPES:
            weights += weight_bytes(config, Precision(experts=experts)) - weight_bytes(config, Precision())
        steps = step_bytes(model, options, KV_TYPES[kv])
        text, size = config.text, options.page_size
        return cls(
            weights=weights,
            workspace=whole_workspace(model, options, steps=steps, graphs=options.cuda_graphs is not False),
            page=KVCache.bytes_per_page(text.n_layers, text.n_heads, text.head_dim, size, KV_TYPES[kv]),
        )


def step_bytes(model: Moondream, options: EngineConfig, kv_dtype: torch.dtype) -> int:
    """The most that the worst steps take beside the cache, of a model on meta."""
    with torch.inference_mode(), allocating() as peak, mock.patch("mdinfer.runner.Flight"):
        cache = worst_steps(model, options, max_context=model.config.text.max_context, kv_dtype=kv_dtype)
    return peak() - cache


def requests(config: ModelConfig, need: Need, kv: str, options: EngineConfig, card: int, tokens: int) -> int:
    """How many of `tokens` positions the cache holds on a card with `card` bytes for us; 0 where nothing runs."""
    try:
        pages = cache_pages(
            config.text,
            options,
            max_context=config.text.max_context,
            dtype=KV_TYPES[kv],
            device=torch.device("cuda"),
            workspace=need.workspace,
            free=card - need.weights,
        )
    except ConfigError:
        return 0
    return pages // -(-tokens // options.page_size)


def measure(config: ModelConfig, options: argparse.Namespace) -> dict[str, Any]:
    choices = {"": EngineConfig(), "*": EngineConfig(**SPARING)}
    needs = {
        (experts, kv, mark): Need.of(config, experts, kv, chosen, linears=options.linears)
        for experts, kv in itertools.product(options.experts, KV_TYPES)
        for mark, chosen in choices.items()
    }
    cards = []
    for gib in options.card:
        room = round((gib - options.reserved) * 2**30)
        cells = {}
        for experts, kv in itertools.product(options.experts, KV_TYPES):
            counts = {
                mark: requests(config, needs[experts, kv, mark], kv, chosen, room, options.tokens)
                for mark, chosen in choices.items()
            }
            cells[f"{experts} / {kv}"] = {"requests": counts[""], "sparing": counts["*"]}
        cards.append({"gib": gib, "holds": cells})
    return {
        "benchmark": "memory",
        "tokens": options.tokens,
        "reserved_gib": options.reserved,
        "linears": options.linears,
        "needs": {
            f"{experts} / {kv}{' sparing' * bool(mark)}": asdict(need) for (experts, kv, mark), need in needs.items()
        },
        "cards": cards,
    }


def _cell(holds: dict[str, int]) -> str:
    parts = [str(holds["requests"])] if holds["requests"] else []
    if holds["requests"] < SPARING["max_batch_size"] and holds["sparing"]:
        parts.append(f"{holds['sparing']}*")
    return ", ".join(parts) or "-"


def rows(result: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table."""
    needs, names = result["needs"], list(result["cards"][0]["holds"])
    return ["weights / cache", *names], [
        ["weights, GiB", *(needs[name]["weights"] / 2**30 for name in names)],
        ["workspace, GiB", *(needs[name]["workspace"] / 2**30 for name in names)],
        ["a request, MiB", *(-(-result["tokens"] // 32) * needs[name]["page"] / 2**20 for name in names)],
        *([f"{card['gib']:g} GiB", *map(_cell, card["holds"].values())] for card in result["cards"]),
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    result = measure(chosen_config(options), options)
    print((markdown if options.markdown else table)(*rows(result)))
    spare = max(need["workspace"] for name, need in result["needs"].items() if name.endswith("sparing"))
    words = ", ".join(f"{name}={value}" for name, value in SPARING.items())
    print(
        f"\nRequests of {options.tokens} tokens that the cache holds at once; 64 run at once, of at most 4096 tokens "
        f"each, unless max_batch_size and max_context say otherwise. {options.reserved:g} GiB of a card are assumed to "
        f"go to the driver, libraries and code. *: only with {words}, a workspace of {spare / 2**30:.2f} GiB."
    )
    write_json(options.json, result)
    return result


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    parser.add_argument("--experts", nargs="+", choices=EXPERTS, default=list(EXPERTS))
    parser.add_argument("--linears", choices=LINEAR_TYPES, default="bf16")
    parser.add_argument("--card", type=float, nargs="+", default=CARDS, metavar="GIB", help="memory of cards")
    parser.add_argument("--reserved", type=float, default=0.75, metavar="GIB", help="that are not for the engine")
    parser.add_argument("--tokens", type=int, default=800, help="positions of a request, prompt and answer")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write everything computed")
    options = parser.parse_args(argv)
    if options.tokens < 1 or min(options.card) <= 0 or options.reserved < 0:
        parser.error("sizes are positive")
    return options


if __name__ == "__main__":
    main()
