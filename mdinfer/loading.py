"""From a model's name and options to a model in memory: devices and precisions resolved, weights in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from mdinfer.checkpoint import find_checkpoint, random_weights
from mdinfer.config import ModelConfig
from mdinfer.errors import ConfigError
from mdinfer.kernels.linear_fp8 import CAPABILITY, FP8
from mdinfer.kernels.packed import can_pack
from mdinfer.memory import CACHE_SHARE, available_bytes, explained_shortage
from mdinfer.model.batch import KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.options import EngineConfig, parse_size
from mdinfer.precision import (
    Choice,
    Experts,
    Linears,
    candidates,
    chosen,
    described,
    expert_dtype,
    linear_dtype,
    smaller_experts,
)
from mdinfer.tokenizer import Tokenizer, find_tokenizer

DEMO = "demo"
DEMO_DIRECTORY = Path(__file__).parent / "demo"
"""The checkpoint that comes with the package, in the published layout: Moondream's structure at pocket size."""

DEMO_NOTICE = "the demo checkpoint is tiny: it knows colored shapes, small sums, names and a few poems"

_FLOAT32_SHARE = 0.5  # of the free memory that float32 weights may take before bfloat16 is chosen on a CPU
# What a device has to hold beside weights and cache: steps, pictures and graphs, which the engine measures on a GPU
# once the weights are there. An estimate: 128 pictures' features take 0.36 GiB of it, rows of a 4096-token prefill 0.6.
# Not measured. A CPU has no graphs, keeps features as they come, and can swap.
_BESIDE = {"cuda": 2 << 30, "cpu": 1 << 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """notice: a sentence the user must see, or ""; choice: of the precision of experts and linears."""

    name: str
    model: Moondream
    tokenizer: Tokenizer
    max_context: int
    choice: Choice
    notice: str = ""

    @property
    def weight_bytes(self) -> int:
        return self.model.weight_bytes


def load_model(
    name: str | Path, options: EngineConfig, *, tokenizer: Path | None = None, config: ModelConfig | None = None
) -> Loaded:
    """Load "demo" (a string: a Path of that name is a directory), a directory, a file or a hub id.

    Given a `config`, make random weights of that size instead. Raises ConfigError, CheckpointError or TokenizerError.
    """
    device = resolve_device(options.device)
    if config is not None:
        return _made_up(str(name), options, device, tokenizer, config)
    is_demo = name == DEMO
    checkpoint = find_checkpoint(DEMO_DIRECTORY if is_demo else name, progress=options.progress)
    config = checkpoint.config
    choice = _kept(config, "fp8" if checkpoint.precision == "fp8" else "bf16", options, device)
    build = _builder(config, choice, options, device)
    checkpoint.check(build("meta").weights())  # sizes that disagree must not be allocated first
    words = find_tokenizer(
        tokenizer, checkpoint.directory, config.tokenizer, config.text.vocab_size, progress=options.progress
    )
    model = build(device)
    widen = _can_widen(model, options)
    beside = ThreadPoolExecutor(1, thread_name_prefix="mdinfer-lay-out")  # packing takes about as long as reading
    jobs: list[Future[None]] = []
    try:
        checkpoint.load_into(
            model.weights(),
            progress=options.progress and not is_demo,
            filled=lambda each: jobs.append(beside.submit(model.lay_out, [each], widen=widen)),
        )
        with _explained(device):
            for job in jobs:
                job.result()
    finally:
        beside.shutdown(cancel_futures=True)
    return Loaded(
        name=str(name),
        model=model,
        tokenizer=words,
        max_context=options.max_context or config.text.max_context,
        choice=choice,
        notice=DEMO_NOTICE if is_demo else "",
    )


def _made_up(
    name: str, options: EngineConfig, device: torch.device, tokenizer: Path | None, config: ModelConfig
) -> Loaded:
    """Random weights, which speak through the demo's tokenizer unless given another."""
    choice = _kept(config, "bf16", options, device)
    model = _builder(config, choice, options, device)(device)
    widen = _can_widen(model, options)
    random_weights(model.weights(), seed=0)
    with _explained(device):
        model.lay_out(widen=widen)
    return Loaded(
        name=name,
        model=model,
        tokenizer=Tokenizer.from_file(
            tokenizer or DEMO_DIRECTORY / "tokenizer.json", config.tokenizer, config.text.vocab_size
        ),
        max_context=options.max_context or config.text.max_context,
        choice=choice,
        notice="the weights are random",
    )


def _can_widen(model: Moondream, options: EngineConfig) -> bool:
    """Whether experts in fp8 may take twice their memory: if the longest sequence still has room beside them.

    Asked when weights are allocated, before they are filled.
    """
    fp8 = sum(weight.nbytes for weight in model.weights().values() if weight.dtype == FP8 and weight.ndim == 3)
    if not fp8 or not can_pack(model.device, model.dtype):
        return False
    cache = _least_cache(model.config, options, model.dtype)
    if options.kv_memory == "auto":
        cache = math.ceil(cache / CACHE_SHARE["cpu"])
    return model.weight_bytes + fp8 + cache + _BESIDE["cpu"] <= available_bytes(model.device)


def resolve_device(name: str) -> torch.device:
    """Raises ConfigError where a GPU is asked for that is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f'device is {name!r}, but torch finds no CUDA GPU: use device="cpu"')
    device = torch.device("cuda" if name == "auto" else name)
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r}, but there are {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)


def _builder(
    config: ModelConfig, choice: Choice, options: EngineConfig, device: torch.device
) -> Callable[[torch.device | str], Moondream]:
    """Makes a model with unset weights, in the precisions that options and checkpoint come to, on a given device."""
    dtype = _dtype(config, options, device)

    def build(on: torch.device | str) -> Moondream:
        with _explained(device):
            return Moondream(
                config,
                dtype=dtype,
                expert_dtype=expert_dtype(choice.experts, dtype),
                linear_dtype=linear_dtype(choice.linears, dtype),
                device=on,
                max_context=1 if on == "meta" else options.max_context,
            )

    return build


def _explained(device: torch.device) -> AbstractContextManager[None]:
    return explained_shortage(
        "the weights", device, "choose a smaller dtype=, experts= or linears=, or another device="
    )


def _kept(config: ModelConfig, own: Experts, options: EngineConfig, device: torch.device) -> Choice:
    """What the options say; what they leave open, the checkpoint's own as far as memory can hold it, and on a CPU
    unquantised in its place.

    Raises ConfigError for int8 on a GPU, and where linears are to be fp8 and the GPU or the dtype does not do that.
    """
    dtype = _dtype(config, options, device)
    hindrance = _fp8_hindrance(dtype, device)
    if options.experts == "int8" and device.type != "cpu":
        raise ConfigError(f'experts is "int8", which only a CPU computes: use "fp8" or "int4" on {device}')
    if options.linears == "fp8" and hindrance:
        raise ConfigError(f'linears is "fp8", but {hindrance}: choose linears="bf16" or "auto"')
    experts: Experts | None = None if options.experts == "auto" else options.experts
    linears: Linears | None = None if options.linears == "auto" else options.linears
    on_cpu = device.type == "cpu"  # where linears in fp8 take less memory, but more time
    smaller = smaller_experts("bf16" if on_cpu else own, on_cpu=on_cpu) if experts is None else (experts,)
    order = candidates(smaller, linears, fp8=not (hindrance or on_cpu))
    if len(order) == 1:
        return chosen(order, {order[0]: 0}, 0)
    beside = _least_cache(config, options, dtype) + _BESIDE[device.type]
    needed = {
        each: _weight_bytes(config, dtype, expert_dtype(each[0], dtype), linear_dtype(each[1], dtype)) + beside
        for each in order
    }
    return chosen(order, needed, available_bytes(device))


def _fp8_hindrance(dtype: torch.dtype, device: torch.device) -> str:
    """Why linears cannot be fp8 there, or ""."""
    if device.type != "cuda":
        return ""
    found = _capability(device)
    if found < CAPABILITY:
        needed = ".".join(map(str, CAPABILITY))
        return f"the GPU's compute capability is {found[0]}.{found[1]}, where products of fp8 need {needed}"
    if dtype != torch.bfloat16:
        return f"the dtype is {str(dtype).removeprefix('torch.')}, where a GPU's products of fp8 give bfloat16"
    return ""


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _least_cache(config: ModelConfig, options: EngineConfig, dtype: torch.dtype) -> int:
    """Bytes of what `kv_memory` asks for, or of one sequence as long as any may be."""
    if options.kv_memory != "auto":
        return parse_size(options.kv_memory, "kv_memory")
    kept = {"auto": dtype, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[options.kv_dtype]
    text, longest = config.text, options.max_context or config.text.max_context
    page = KVCache.bytes_per_page(text.n_layers, text.n_heads, text.head_dim, options.page_size, kept)
    return page * -(-longest // options.page_size)


def _weight_bytes(config: ModelConfig, dtype: torch.dtype, experts: torch.dtype, linears: torch.dtype) -> int:
    skeleton = Moondream(config, dtype=dtype, expert_dtype=experts, linear_dtype=linears, device="meta", max_context=1)
    return sum(tensor.nbytes for tensor in skeleton.weights().values())


def _dtype(config: ModelConfig, options: EngineConfig, device: torch.device) -> torch.dtype:
    if options.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    if device.type == "cuda":
        return torch.bfloat16
    size = 4 * parameter_count(config)
    return torch.float32 if size <= available_bytes(device) * _FLOAT32_SHARE else torch.bfloat16


def parameter_count(config: ModelConfig) -> int:
    """Numbers in a checkpoint of this size."""
    skeleton = Moondream(config, device="meta", max_context=1)
    return sum(tensor.numel() for tensor in skeleton.weights().values())


def describe_precision(model: Moondream) -> str:
    """For example "bfloat16, experts float8_e4m3fn, linears float8_e4m3fn"."""
    parts = [str(model.dtype).removeprefix("torch.")]
    quantised = [tensor for tensor in model.weights().values() if tensor.dtype.itemsize == 1]
    for name, dimensions in (("experts", 3), ("linears", 2)):
        if kinds := {described(tensor) for tensor in quantised if tensor.ndim == dimensions}:
            parts.append(f"{name} {kinds.pop()}")
    return ", ".join(parts)
