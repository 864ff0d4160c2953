"""How the engine runs a model: devices, precisions, limits. Resolved once, then frozen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mdinfer.errors import ConfigError

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of `Engine.load`. Raises ConfigError on a value that cannot work.

    device            "auto" (CUDA where there is one), "cpu", "cuda", "cuda:N"
    dtype             "auto" (bfloat16 on CUDA; on a CPU float32 if it fits in half of the free memory,
                      else bfloat16), "float32", "bfloat16"
    experts           "auto" (as the checkpoint has them; where memory cannot hold that, the first of bf16, fp8 and
                      int4 that it can; on a CPU of bf16, int8 and int4), "bf16" (unquantised, in `dtype`), "fp8"
                      (weights only; in bfloat16 on a CPU with AVX-512 held as bfloat16, where memory allows), "int8"
                      (weights only; on a CPU alone), "int4" (weights only, 0.53 bytes each: two numbers for every 128
                      inputs of a channel)
    linears           the products of attention, of dense layers and of the vision tower: "bf16" (unquantised, in
                      `dtype`), "fp8" (e4m3 weights with a scale for each output channel; of more than 16 rows at once
                      the rows are rounded too; on a GPU of compute capability 8.9 or later, in bfloat16, or on a CPU),
                      "auto" (bf16; fp8 on such a GPU whose memory cannot hold that with experts in fp8)
    kv_dtype          keys and values in the cache: "auto" (the model's dtype), "bf16", or "fp8" (with a scale for
                      each token and head: about half of bfloat16's memory)
    max_batch_size    sequences that run together
    kv_memory         bytes, a size such as "8GiB", or "auto"
    max_context       positions one sequence may take; None: the checkpoint's own limit
    page_size         positions in one page of the KV cache
    prefix_cache      keep prompts and answers in free pages, for requests that begin with them
    prefill_tokens    positions that one step may prefill; longer prompts take several, an image is not cut
    vision_crops      crops that run through the vision tower in one pass, and in one step unless of one picture
    image_cache       pictures whose features are kept for requests to come
    cuda_graphs       record decoding steps and vision passes once and replay them; "auto": on a GPU. On a CPU, True
                      runs them on the same fixed buffers, unrecorded and slower: for tests
    overlap           launch a step before the one before it is read; "auto": on a GPU, where it saves time
    dependent_launch  start kernels while those before them end (programmatic dependent launch) on a GPU of compute
                      capability 9.0 or later; off as long as nobody has measured that it pays
    two_streams       on a GPU, compute attention and MLP of a layer side by side in steps that only decode; off for
                      the same reason
    max_queue         requests that may wait for admission before QueueFullError
    exif              rotate pictures by their EXIF orientation (the reference does not)
    cpu_threads       threads that share each operation of a step on a CPU; None: torch's number, or one where the model
                      is too small to gain by more
    resize            where pictures are resized and cut: "cpu", or "device", which gives the same bytes; what is too
                      large for that, or waits beyond UNCUT_BYTES (`uncut.py`), is still cut on the CPU
    image_threads     threads that decode and resize pictures; None: one per core, at most 16
    max_image_pixels  pictures with more pixels are refused before they are decoded
    progress          show progress bars on stderr
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    experts: Literal["auto", "bf16", "fp8", "int8", "int4"] = "auto"
    linears: Literal["auto", "bf16", "fp8"] = "auto"
    kv_dtype: Literal["auto", "bf16", "fp8"] = "auto"
    max_batch_size: int = 64
    kv_memory: int | str = "auto"
    max_context: int | None = None
    page_size: int = 32
    prefix_cache: bool = True
    prefill_tokens: int = 4096
    vision_crops: int = 13
    image_cache: int = 64
    cuda_graphs: bool | Literal["auto"] = "auto"
    overlap: bool | Literal["auto"] = "auto"
    dependent_launch: bool = False
    two_streams: bool = False
    max_queue: int = 1024
    exif: bool = True
    cpu_threads: int | None = None
    resize: Literal["cpu", "device"] = "cpu"
    image_threads: int | None = None
    max_image_pixels: int = 50_000_000
    progress: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f'device must be "auto", "cpu", "cuda" or "cuda:N", found {self.device!r}')
        _choice("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        _choice("experts", self.experts, ("auto", "bf16", "fp8", "int8", "int4"))
        _choice("linears", self.linears, ("auto", "bf16", "fp8"))
        _choice("kv_dtype", self.kv_dtype, ("auto", "bf16", "fp8"))
        _choice("resize", self.resize, ("cpu", "device"))
        for name in ("cuda_graphs", "overlap"):
            value = getattr(self, name)
            if value != "auto" and not isinstance(value, bool):
                raise ConfigError(f'{name} must be True, False or "auto", found {value!r}')
        for name in ("dependent_launch", "two_streams", "exif", "prefix_cache", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, found {getattr(self, name)!r}")
        for name, least, most in (
            ("max_batch_size", 1, 4096),
            ("max_context", 2, 1 << 20),
            ("page_size", 1, 1024),
            ("prefill_tokens", 1, 1 << 20),
            ("vision_crops", 1, 1024),
            ("image_cache", 0, 1 << 20),
            ("max_queue", 1, 1 << 20),
            ("cpu_threads", 1, 1024),
            ("image_threads", 1, 256),
            ("max_image_pixels", 1, 1 << 31),
        ):
            value = getattr(self, name)
            if value is None and name in ("max_context", "cpu_threads", "image_threads"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(f"{name} must be an integer from {least} to {most}, found {value!r}")
        if self.kv_memory != "auto":
            parse_size(self.kv_memory, "kv_memory")


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, found {value!r}")


def parse_size(value: int | str, name: str) -> int:
    """Bytes of 8589934592, "8GiB", "8GB" or "500 MB". Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None or not 0 < float(match[1]) < 1e18:
        raise ConfigError(f'{name} must be a positive number of bytes or a size such as "8GiB", found {value!r}')
    unit = (match[2] or "B").upper()
    base = 1024 if "I" in unit else 1000
    return int(float(match[1]) * base ** "BKMGT".index(unit[0]))
