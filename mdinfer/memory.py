"""How much memory there is, and what of it the KV cache takes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mdinfer.config import TextConfig
from mdinfer.errors import ConfigError
from mdinfer.model.batch import KVCache
from mdinfer.options import EngineConfig, parse_size

# What the cache takes at most of what is left; the rest of a GPU's is for the driver, and for what lies between pieces.
CACHE_SHARE = {"cpu": 0.25, "cuda": 0.95}
# Of torch's and oneDNN's errors on a CPU.
_SHORTAGE = ("can't allocate memory", "not enough memory", "out of memory", "calculation overflowed")


def available_bytes(device: torch.device) -> int:
    """Memory free for use: the device's, or on a CPU what the system and its control group leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    _give_back()
    limits = [_meminfo("MemAvailable") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        if limit != "max":
            limits.append(int(limit) - used + int(stat.get("inactive_file", 0)))  # files read are given back
    except (OSError, ValueError):
        pass
    return max(0, min(limits))


def _give_back() -> None:
    """What glibc keeps of freed memory, such as an earlier model's packed weights, goes back to the system first."""
    with suppress(OSError, AttributeError, TypeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def explained_shortage(what: str, device: torch.device, remedy: str) -> Iterator[None]:
    """Turn a failed allocation into a ConfigError that says what is free and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for a CPU's memory, but words; any other error is what it says.
        short = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not short and (device.type == "cuda" or not any(words in str(error) for words in _SHORTAGE)):
            raise
        free = format_bytes(available_bytes(device))
        raise ConfigError(f"{what} cannot be allocated on {device}, where {free} are free: {remedy}") from error


def cache_pages(
    config: TextConfig,
    options: EngineConfig,
    *,
    max_context: int,
    dtype: torch.dtype,
    device: torch.device,
    workspace: int = 0,
    free: int | None = None,
) -> int:
    """Pages of the KV cache: as many as the batch can ever use, within `kv_memory`. Raises ConfigError.

    Without a `kv_memory` they take what is free beside `workspace` bytes on a GPU, and a quarter of it on a CPU.
    `free` bytes may be given for a device that is not there.
    """
    page = KVCache.bytes_per_page(config.n_layers, config.n_heads, config.head_dim, options.page_size, dtype)
    most = options.max_batch_size * -(-max_context // options.page_size)
    if options.kv_memory == "auto":
        free = available_bytes(device) if free is None else free
        budget = max(0, int((free - workspace) * CACHE_SHARE[device.type]))
    else:
        budget = parse_size(options.kv_memory, "kv_memory")
    if budget < page:
        raise ConfigError(
            f"kv_memory is {budget} bytes, one page of {options.page_size} positions needs {page}: "
            "give it more, or free memory"
        )
    return min(most, budget // page)


def format_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _meminfo(field: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == field:
                return int(rest.split()[0]) * 1024
    except OSError:
        return None
    return None
