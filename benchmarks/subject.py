"""The model that a benchmark runs, by its options, and the rates of the chip that its times are compared with."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args, get_type_hints
from unittest import mock

import torch

from benchmarks import chips
from benchmarks.batch import Batch
from benchmarks.chips import Rates
from benchmarks.costs import Precision
from benchmarks.kernels.measure import ceilings, timer_for
from benchmarks.report import environment, median
from benchmarks.roofline import Floors
from benchmarks.sizes import SIZES
from mdinfer.kernels import Routing, moe_route
from mdinfer.kernels.dispatch import launch_dependently
from mdinfer.loading import Loaded, describe_precision, load_model, parameter_count
from mdinfer.memory import format_bytes
from mdinfer.model.moe import ExpertMlp
from mdinfer.model.moondream import Moondream
from mdinfer.options import EngineConfig

_NAMES = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8", torch.int8: "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """header: what a result begins with; floors: None where no rates are known."""

    loaded: Loaded
    header: dict[str, Any]
    precision: Precision
    floors: Floors | None

    @property
    def model(self) -> Moondream:
        return self.loaded.model

    def synchronize(self) -> None:
        """Wait for a GPU."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def add_options(parser: argparse.ArgumentParser, *, rounds: int, random: str | None = "200m") -> None:
    """For `load`. Without a size of `random` weights the demo is what is loaded unless another is named."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", help='directory, file or repository id; "demo" for the built-in one')
    source.add_argument("--random", choices=SIZES, default=random, help="make up weights of this size")
    parser.add_argument("--skew", type=float, default=0.0, help="of random routers: 0 spreads tokens evenly, 1 is much")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--experts", default="auto", choices=get_args(get_type_hints(EngineConfig)["experts"]))
    parser.add_argument("--linears", default="auto", choices=get_args(get_type_hints(EngineConfig)["linears"]))
    parser.add_argument("--kv", default="auto", choices=("auto", "bf16", "fp8"), help="keys and values in the cache")
    parser.add_argument(
        "--dependent-launch", action="store_true", help="start kernels while those before them end, on a GPU"
    )
    parser.add_argument("--two-streams", action="store_true", help="decode attention beside the MLP, on a GPU")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    rates = parser.add_argument_group(
        "floors", "times are compared with those of a chip: on a GPU its own are measured"
    )
    chips.add_options(rates, default=None)
    rates.add_argument("--measure", action="store_true", help="measure the rates of a CPU, too")


def load(benchmark: str, options: argparse.Namespace, parser: argparse.ArgumentParser) -> Subject:
    """Load, and print what was loaded."""
    if options.checkpoint is None and options.random is None:
        options.checkpoint = "demo"
    if options.skew and options.checkpoint:
        parser.error("--skew goes with random weights")
    given = chips.chosen(options, parser)
    if options.dependent_launch:
        launch_dependently(True)
    start = time.perf_counter()
    loaded = load_model(
        options.checkpoint or "random",
        EngineConfig(
            device=options.device,
            dtype=options.dtype,
            experts=options.experts,
            linears=options.linears,
            progress=False,
        ),
        config=None if options.checkpoint else SIZES[options.random],
    )
    model = loaded.model
    if not options.checkpoint:
        spread_routers(model)
        skew_routers(model, options.skew)
    ready = time.perf_counter() - start
    rates = given
    if rates is None and (options.measure or model.device.type == "cuda"):
        rates = measured_rates(model.device, model.dtype)
    header: dict[str, Any] = {
        "benchmark": benchmark,
        "environment": environment(model.device),
        "model": options.checkpoint or f"random {options.random}" + (f", skew {options.skew:g}" * bool(options.skew)),
        "parameters": parameter_count(model.config),
        "precision": describe_precision(model) + ("" if options.kv == "auto" else f", cache {options.kv}"),
        "dependent_launch": options.dependent_launch,
        "two_streams": options.two_streams,
        "load_s": ready,
        "rates": str(rates) if rates else None,
    }
    print(
        f"{header['model']}: {header['parameters'] / 1e6:.0f} M parameters, {header['precision']}, "
        f"{format_bytes(loaded.weight_bytes)}, ready in {ready:.1f} s\n"
        f"{', '.join(f'{k} {v}' for k, v in header['environment'].items())}\n" + (f"floors: {rates}\n" if rates else "")
    )
    return Subject(
        loaded=loaded,
        header=header,
        precision=_precision(loaded, options.kv),
        floors=Floors(model.config, rates) if rates else None,
    )


def _precision(loaded: Loaded, kv: str) -> Precision:
    model, base = loaded.model, _NAMES[loaded.model.dtype]
    weights = [t for layer in _routers(model) for n, t in layer.named_parameters() if n.endswith(".weight")]
    kinds = {torch.bfloat16 if t.is_meta else t.dtype for t in weights}  # packed: see `Moondream.lay_out`
    experts = next((_NAMES.get(kind, "int4") for kind in kinds if kind != model.dtype), base)
    linears = loaded.choice.linears
    return Precision(dtype=base, experts=experts, linears=linears, kv=base if kv == "auto" else kv)


def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """What a large copy and a large product reach on this device now; on a CPU in the model's own dtype."""
    if device.type == "cuda":
        found = ceilings(device)
        return Rates(
            bandwidth=found["bytes_per_s"], bf16=found["flops_per_s"], fp8=found["fp8_flops_per_s"], source="measured"
        )
    timer, side = timer_for(device), 1024
    source = torch.ones(1 << 26, dtype=torch.uint8)
    copy_ms = median(timer([partial(torch.empty_like(source).copy_, source)] * 4))
    a, b = (torch.randn(side, side).to(dtype) for _ in "ab")
    product_ms = median(timer([partial(torch.mm, a, b)] * 4))
    kind = str(dtype).removeprefix("torch.")
    return Rates(
        bandwidth=2 * source.nbytes / copy_ms * 1e3,
        bf16=2 * side**3 / product_ms * 1e3,
        kind=kind,
        source="measured",
    )


def _routers(model: Moondream) -> list[ExpertMlp]:
    return [layer for layer in model.modules() if isinstance(layer, ExpertMlp)]


@torch.inference_mode()
def spread_routers(model: Moondream, sequences: int = 8, tokens: int = 16) -> None:
    """Have tokens choose all experts about equally often, as training does.

    Hidden states of random weights are much alike, so that all tokens choose much the same experts. Each router's bias
    is set so that its logits average to zero over random text, which goes through the layers as they are corrected.
    """

    def centre(layer: ExpertMlp, given: tuple[torch.Tensor, ...]) -> None:
        layer.router.bias.sub_(layer.router(given[0]).mean(dim=0))

    hooks = [layer.register_forward_pre_hook(centre) for layer in _routers(model)]
    Batch(model, sequences, tokens, 1).step()
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def skew_routers(model: Moondream, amount: float) -> None:
    """Take `amount` ln(rank) off each expert's logit, ranks drawn anew for each layer."""
    for number, layer in enumerate(_routers(model)):
        bias = layer.router.bias
        ranks = 1 + torch.randperm(len(bias), generator=torch.Generator().manual_seed(number))
        bias.sub_((amount * ranks.log()).to(bias))


@contextmanager
def routings() -> Iterator[list[int]]:
    """How many distinct experts each layer touches that is run within, without graphs."""
    found: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Routing:
        routing = moe_route(*args, **kwargs)
        found.append(len(torch.unique(routing.experts)))
        return routing

    with mock.patch("mdinfer.model.moe.moe_route", counting):
        yield found
