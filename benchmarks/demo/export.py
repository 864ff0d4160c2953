"""Write a run's weights in the published layout.

    python -m benchmarks.demo.export RUN DIRECTORY

config.json, tokenizer.json, and model.safetensors in bfloat16, named as the published checkpoint names them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.demo.train import Run
from mdinfer.model.moondream import Moondream

LARGEST_BYTES = 10_000_000
"""Of the three files together: they travel in every wheel."""


def published_tensors(model: Moondream) -> dict[str, torch.Tensor]:
    """Weights by published name, in bfloat16; Wq and Wv of an attention's temperatures are apart there."""
    tensors = {}
    for name, weight in model.weights().items():
        stored = weight.detach().to("cpu", torch.bfloat16)
        if name.endswith("tau.wqwv"):
            for part, half in zip(("wq", "wv"), stored.chunk(2), strict=True):
                tensors[f"model.{name.removesuffix('wqwv')}{part}"] = half.clone()
        else:
            tensors[f"model.{name}"] = stored.contiguous()
    return tensors


def export(run: Run, directory: Path, tokenizer: Path) -> int:
    """Write the three files; returns their size in bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(published_tensors(run.model), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(run.config.to_dict(), indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer, directory / "tokenizer.json")
    names = ("model.safetensors", "config.json", "tokenizer.json")
    return sum((directory / name).stat().st_size for name in names)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args(argv)
    run = Run(arguments.run, torch.device("cpu"), muon_lr=0, adam_lr=0, seed=0)
    size = export(run, arguments.directory, arguments.run / "tokenizer.json")
    print(f"step {run.step}: {size / 1e6:.2f} MB in {arguments.directory}")
    if size > LARGEST_BYTES:
        raise SystemExit(f"{size} bytes are more than {LARGEST_BYTES}")


if __name__ == "__main__":
    main()
