"""Peak memory of loading: 1.15 of the weights and a constant, in every layout.

The constant, for the loader's own memory:

- 32 MiB: a block of 1 M elements as stored and in up to four float32 copies (20 MiB at most), and what
  torch's thread pool, the allocator and the file headers take on first use;
- for `.pt` 128 MiB more: the mapping grows to that before it is dropped, plus one block.

A loader that kept a whole file mapped, or a copy of the weights, would need twice the weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoint.models import FP8, empty_targets, tiny_config
from tests.checkpoint.writers import WRITERS

MIB = 1 << 20
ROOT = Path(__file__).parents[2]

LOAD = """
import json, sys
from pathlib import Path
import torch
from mdinfer.checkpoint import find_checkpoint
from tests.checkpoint.models import parameter_shapes, is_expert

found = find_checkpoint(sys.argv[1])
targets = {}
for name, shape in parameter_shapes(found.config).items():
    kind, scale = sys.argv[2] if is_expert(name, shape) else "bf16", name.removesuffix("weight") + "scale"
    if kind == "int4":
        targets[name] = torch.empty(*shape[:-1], shape[-1] // 2, dtype=torch.uint8)
        targets[scale] = torch.empty(*shape[:-1], shape[-1] // 128, 2, dtype=torch.bfloat16)
        continue
    kinds = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "bf16": torch.bfloat16}
    targets[name] = torch.empty(shape, dtype=kinds[kind])
    if kind != "bf16":
        targets[scale] = torch.empty(shape[:-1], dtype=torch.float32 if kind == "fp8" else torch.bfloat16)

def memory(kind):
    status = Path("/proc/self/status").read_text()
    return int(status.split(kind + ":")[1].split()[0]) * 1024

before = memory("VmRSS")
found.load_into(targets, progress=False)
print(json.dumps([memory("VmHWM") - before, sum(values.nbytes for values in targets.values())]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("layout", "stored", "loaded"),
    [
        ("published", "bf16", "bf16"),
        ("published", "bf16", "fp8"),
        ("published", "bf16", "int8"),
        ("fp8_safetensors", "fp8", "fp8"),
        ("fp8_safetensors", "fp8", "int4"),
        ("fp8_pt", "fp8", "fp8"),
    ],
)
def test_peak_memory(layout: str, stored: str, loaded: str, tmp_path: Path) -> None:
    count = 48 if loaded == "int4" else 16 if stored == "bf16" else 28
    config = tiny_config(layers=6, dim=1024, experts=count, inner=512)
    weights = empty_targets(config, experts=FP8 if stored == "fp8" else None)
    weights = {name: torch.zeros_like(values) for name, values in weights.items()}
    path = WRITERS[layout](tmp_path, config, weights)
    del weights
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(path), loaded], cwd=ROOT, capture_output=True, text=True, check=True
        )
    finally:
        path.unlink()
    growth, size = json.loads(done.stdout)
    assert size > 128 * MIB
    allowed = 1.15 * size + (160 if layout == "fp8_pt" else 32) * MIB
    print(f"{layout} {stored}->{loaded}: weights {size / MIB:.0f} MiB, growth {growth / MIB:.0f} MiB")
    assert growth <= allowed, f"{growth / MIB:.0f} MiB for {size / MIB:.0f} MiB of weights"
