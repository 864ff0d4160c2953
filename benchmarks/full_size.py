"""How long a full-size checkpoint takes until it answers, and how much memory, by the experts' precision.

    python -m benchmarks.full_size --device cpu --experts bf16 int8 int4 --json full_size.json
    python -m benchmarks.full_size --checkpoint DIRECTORY --device cuda --experts bf16 fp8

Without a checkpoint one of random values is written first, with published names and sizes (18.5 GB in `--directory`),
shard by shard, so that a layer is the most that is held; `--keep` leaves it there. Each precision loads in a process of
its own, which says when it has imported, loaded and made its engine, answers a question with one token, then with more.

"above" is the peak of the process's memory (VmHWM) when weights were loaded, less the weights and what it held
before: packing bfloat16 for a CPU shows the largest weight of a layer there, 0.5 GiB. What the operating system has
cached of the files decides how fast they are read: the first precision may find less there than those after it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch

from benchmarks.report import environment, table, write_json
from benchmarks.sizes import SIZES
from mdinfer.checkpoint import find_checkpoint, random_weights
from mdinfer.config import ModelConfig
from mdinfer.engine import Engine
from mdinfer.loading import DEMO_DIRECTORY, describe_precision, load_model
from mdinfer.memory import format_bytes
from mdinfer.model.moondream import Moondream
from mdinfer.options import EngineConfig
from mdinfer.precision import Experts

_QUESTION = "What is 2 + 2?"
_SHARD = 1 << 30  # bytes, or one tensor


def write_random(directory: Path, config: ModelConfig) -> int:
    """Write config.json, shards and their index in bfloat16; returns the bytes of all tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    parameters = Moondream(config, dtype=torch.bfloat16, device="meta", max_context=1).weights()
    placed, total = {}, 0
    for number, names in enumerate(_shards(parameters)):
        values = {name: torch.empty(parameters[name].shape, dtype=torch.bfloat16) for name in names}
        random_weights(values, seed=number)
        file = f"model-{number:05}.safetensors"
        stored = dict(_published(values))
        total += _write(directory / file, stored)
        placed.update(dict.fromkeys(stored, file))
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def _shards(parameters: dict[str, torch.Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in parameters.items():
        if names and size + tensor.nbytes > _SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def _published(values: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in values.items():
        if name.endswith(".tau.wqwv"):
            for part, half in zip(("wq", "wv"), tensor.chunk(2), strict=True):
                yield f"model.{name.removesuffix('wqwv')}{part}", half
        else:
            yield f"model.{name}", tensor


def _write(file: Path, tensors: dict[str, torch.Tensor]) -> int:
    """A safetensors file of bfloat16 tensors; returns their bytes."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            stream.write(tensor.contiguous().view(torch.uint8).numpy().data)
    return end


def one(directory: str, experts: Experts | Literal["auto"], options: argparse.Namespace) -> dict[str, Any]:
    """Load and answer in this process, which began at `options.begun` of the monotonic clock."""
    begun = options.begun
    before, imported = _status("VmRSS"), time.monotonic()
    config = EngineConfig(
        device=options.device,
        dtype=options.dtype,
        experts=experts,
        kv_memory="1GiB",
        max_batch_size=4,
        progress=False,
    )
    loaded = load_model(directory, config, tokenizer=_tokenizer(directory))
    ready_weights, peak = time.monotonic(), _status("VmHWM")
    with Engine(loaded, config) as engine:
        ready = time.monotonic()
        engine.query(None, _QUESTION, temperature=0, max_tokens=1)
        first = time.monotonic()
        result = engine.query(None, _QUESTION, temperature=0.5, top_p=1.0, seed=1, max_tokens=options.tokens)
        decoding = time.monotonic() - first
        on_gpu = loaded.model.device.type == "cuda"
        return {
            "experts": experts,
            "precision": describe_precision(loaded.model),
            "weight_bytes": loaded.weight_bytes,
            "import_s": imported - begun,
            "load_s": ready_weights - imported,
            "load_gb_per_s": find_checkpoint(directory, progress=False).nbytes / (ready_weights - imported) / 1e9,
            "engine_s": ready - ready_weights,
            "ready_s": ready - begun,
            "first_token_s": first - begun,
            "generated": len(result.token_ids),
            "tokens_per_s": len(result.token_ids) / decoding,
            "above_bytes": peak - before - (0 if on_gpu else loaded.weight_bytes),
            "peak_bytes": _status("VmHWM"),
            "gpu_peak_bytes": torch.cuda.max_memory_allocated(loaded.model.device) if on_gpu else None,
        }


def _tokenizer(directory: str) -> Path | None:
    """The demo's for a checkpoint that has none."""
    return None if (Path(directory) / "tokenizer.json").is_file() else DEMO_DIRECTORY / "tokenizer.json"


def _status(field: str) -> int:
    """Bytes that the kernel says this process has, or had at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def measured(directory: str, experts: str, options: argparse.Namespace) -> dict[str, Any]:
    """`one` in a process of its own. A process that fails says so on stderr, and gives an error here."""
    command = [sys.executable, "-m", "benchmarks.full_size", "--checkpoint", directory, "--experts", experts]
    command += ["--device", options.device, "--dtype", options.dtype, "--tokens", str(options.tokens)]
    done = subprocess.run([*command, "--begun", repr(time.monotonic())], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"experts": experts, "error": f"ended with status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = _parse(argv)
    if options.begun is not None:
        found = one(options.checkpoint, options.experts[0], options)
        print(json.dumps(found))
        return found
    result: dict[str, Any] = {"benchmark": "full_size", "environment": environment(torch.device(options.device))}
    directory = Path(options.checkpoint or tempfile.mkdtemp(prefix="mdinfer-", dir=options.directory))
    try:
        if options.checkpoint is None:
            start = time.monotonic()
            result["checkpoint_bytes"] = write_random(directory, SIZES[options.random])
            result["write_s"] = time.monotonic() - start
            size = format_bytes(result["checkpoint_bytes"])
            print(f"random {options.random}: {size} written to {directory} in {result['write_s']:.0f} s", flush=True)
        result["results"] = []
        for experts in options.experts:
            result["results"].append(measured(str(directory), experts, options))
            write_json(options.json, result)
    finally:
        if options.checkpoint is None and not options.keep:
            shutil.rmtree(directory)
    _show(result)
    return result


def _show(result: dict[str, Any]) -> None:
    columns = ["experts", "import s", "load s", "GB/s", "engine s", "ready s", "first token s", "tokens/s"]
    columns += ["weights GiB", "above GiB", "peak GiB"]
    rows = [
        [
            r["experts"],
            *(r[name] for name in ("import_s", "load_s", "load_gb_per_s", "engine_s", "ready_s", "first_token_s")),
            r["tokens_per_s"],
            *(r[name] / 2**30 for name in ("weight_bytes", "above_bytes", "peak_bytes")),
        ]
        for r in result["results"]
        if "error" not in r
    ]
    print(table(columns, rows))
    for r in result["results"]:
        if "error" in r:
            print(f"{r['experts']}: {r['error']}")
    print(", ".join(f"{k} {v}" for k, v in result["environment"].items()))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = get_args(get_type_hints(EngineConfig)["experts"])
    parser.add_argument("--checkpoint", metavar="DIRECTORY", help="load this one; else one is made up")
    parser.add_argument("--random", choices=SIZES, default="full", help="size of what is made up")
    parser.add_argument("--directory", help="where that is written (default: the system's for temporary files)")
    parser.add_argument("--keep", action="store_true", help="leave it there")
    parser.add_argument("--experts", nargs="+", choices=kinds, default=["bf16", "int4"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--tokens", type=int, default=16, help="of the second answer, at most")
    parser.add_argument("--json", metavar="FILE", help="write everything measured")
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.tokens < 1:
        parser.error("--tokens is positive")
    return options


if __name__ == "__main__":
    main()
