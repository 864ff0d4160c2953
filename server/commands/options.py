"""Options that several subcommands share: of the engine, of sampling."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any

ENGINE = (
    *("device", "dtype", "experts", "linears", "kv_dtype", "kv_memory", "max_batch_size", "max_context"),
    *("max_queue", "prefill_tokens", "cpu_threads", "resize", "image_threads", "max_image_pixels"),
)
SAMPLING = ("temperature", "top_p", "max_tokens", "seed", "stop")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine options")
    group.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json in place of the checkpoint's own")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--dtype", metavar="T", help="auto, float32 or bfloat16")
    group.add_argument("--experts", metavar="T", help="precision of the experts: auto, bf16, fp8, int8 (CPU) or int4")
    group.add_argument("--linears", metavar="T", help="precision of dense and vision products: auto, bf16 or fp8")
    group.add_argument("--kv-memory", metavar="SIZE", help='memory of the KV cache: auto, or such as "8GiB"')
    group.add_argument("--max-batch-size", type=int, metavar="N", help="sequences that run together")
    group.add_argument("--kv-dtype", metavar="T", help="precision of the KV cache: auto, bf16 or fp8")
    group.add_argument("--max-context", type=int, metavar="N", help="positions one sequence may take")
    group.add_argument("--prefill-tokens", type=int, metavar="N", help="positions one step may prefill")
    group.add_argument("--cpu-threads", type=int, metavar="N", help="threads that share a step's work on a CPU")
    group.add_argument("--resize", metavar="WHERE", help="where pictures are resized: cpu or device")
    group.add_argument("--image-threads", type=int, metavar="N", help="threads that decode pictures")
    group.add_argument("--max-image-pixels", type=int, metavar="N", help="larger pictures are refused")
    group.add_argument(
        "--no-prefix-cache", action="store_true", help="do not keep prompts for requests that begin alike"
    )


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", help='"demo", a directory or a repository id (default: demo)')


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling options")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; up to 2")
    group.add_argument("--top-p", type=float, metavar="P", help="in (0, 1]")
    group.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate, reasoning included")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before TEXT (repeatable)")


def stated(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options of `names` that the user gave; the engine knows the defaults of the others."""
    values = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}
