"""Where a checkpoint is and what it is: `find_checkpoint` looks, `Checkpoint` says what was found.

Only headers are read here; the weights' bytes are `load.py`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from mdinfer.checkpoint import hub
from mdinfer.checkpoint.layouts import detect
from mdinfer.checkpoint.load import carry_out
from mdinfer.checkpoint.plan import plan
from mdinfer.checkpoint.safetensors_file import read_headers, read_index
from mdinfer.checkpoint.tensors import Stored
from mdinfer.checkpoint.torch_file import SUFFIXES, read_state
from mdinfer.config import ModelConfig
from mdinfer.errors import CheckpointError

Layout = Literal["published", "fp8_safetensors", "fp8_pt"]
Precision = Literal["float32", "bfloat16", "fp8"]

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_INDEX = "model.safetensors.index.json"
_LOOKED_FOR = f"{_INDEX}, model.safetensors, a single *.safetensors, model_fp8.pt, a single *.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights on disk, their headers read and consistent.

    path       the file that was found: the weights, or the index of their shards
    directory  where it lies; config.json and perhaps tokenizer.json are beside it
    config     from config.json; the published model's where that is absent or silent
    layout     family of names and container; a `.pt` with published names is "published"
    precision  what the weights are stored as: "fp8" if any is float8, else by most of their bytes
               (float16 counts as "bfloat16")
    nbytes     size of all tensors as stored
    """

    path: Path
    directory: Path
    config: ModelConfig
    layout: Layout
    precision: Precision
    nbytes: int
    tensors: tuple[Stored, ...] = field(repr=False)

    def check(self, targets: Mapping[str, torch.Tensor]) -> None:
        """As `load_into` checks before it copies; targets may be on the meta device."""
        plan(self.tensors, targets)

    def load_into(
        self,
        targets: Mapping[str, torch.Tensor],
        *,
        progress: bool = True,
        filled: Callable[[str], None] | None = None,
    ) -> None:
        """Fill every parameter in place, on whatever device it is.

        `targets` are all parameters of the model by name, float32, bfloat16, float16, or, for weights with their
        scales beside them (`.weight` -> `.scale`), float8_e4m3fn, or int8 or int4 of experts. Stored floats are cast;
        stored float8 is copied into float8 and multiplied out into floats; floats are quantised into float8
        (see `quantise_rows`), both into int8 (`quantise_channels`) and int4 (`quantise_groups`). Peak memory is the
        parameters' and some tens of MB.

        `progress` shows a bar of bytes on stderr. `filled` is called with each parameter's name once all of it, and of
        its scales, is there; that parameter is not touched again.

        Raises CheckpointError for missing, unexpected, misshapen or mistyped tensors, before anything is
        copied, and for tensors that end early or hold NaN or infinity, with the parameters partly filled.
        """
        carry_out(plan(self.tensors, targets), progress=progress, filled=filled)


def find_checkpoint(model: str | Path, *, progress: bool = True) -> Checkpoint:
    """Find weights by directory, file (.safetensors, .index.json, .pt) or Hugging Face repository id.

    What exists on disk comes before a repository of that name. A repository is downloaded to the Hugging Face
    cache (with a progress bar, if `progress`), unless it is there; HF_HUB_OFFLINE is honoured.

    Raises CheckpointError if there is nothing or it is damaged, ConfigError if config.json is bad.
    """
    try:
        given = Path(model).expanduser()
        is_directory, is_file = given.is_dir(), given.is_file()
    except (OSError, RuntimeError, ValueError, TypeError) as error:  # too long, no such home, a NUL, no path at all
        raise CheckpointError(f"{str(model)[:60]!r} is no path that can be looked at ({error})") from error
    if is_directory:
        path = weights_in(given)
    elif is_file:
        path = given
    elif _REPO.fullmatch(str(model)) and not isinstance(model, Path):
        path = _downloaded(str(model), progress=progress)
    else:
        raise CheckpointError(
            f"{str(model)!r} is no directory and no file here, and no Hugging Face repository id "
            "(owner/name): check the path, or give for example moondream/moondream3-preview"
        )
    tensors = _read(path)
    names = detect(stored.name for stored in tensors)
    fp8: Layout = "fp8_pt" if path.suffix in SUFFIXES else "fp8_safetensors"
    config = path.parent / "config.json"
    return Checkpoint(
        path=path,
        directory=path.parent,
        config=ModelConfig.from_file(config) if config.is_file() else ModelConfig(),
        layout="published" if names == "published" else fp8,
        precision=_precision(tensors),
        nbytes=sum(stored.nbytes for stored in tensors),
        tensors=tensors,
    )


def weights_in(directory: Path) -> Path:
    """The weights of a directory: the first there is of `_LOOKED_FOR`. Raises CheckpointError."""
    if not os.access(directory, os.R_OK | os.X_OK):
        raise CheckpointError(f"{directory} cannot be read: check its permissions")
    for name in (_INDEX, "model.safetensors"):
        if (directory / name).is_file():
            return directory / name
    for ending, usual in ((".safetensors", None), (".pt", "model_fp8.pt")):
        if usual and (directory / usual).is_file():
            return directory / usual
        files = sorted(directory.glob(f"*{ending}"))
        if len(files) > 1:
            raise CheckpointError(
                f"{directory} has {len(files)} *{ending} files and no {_INDEX}: name one, or add the index"
            )
        if files:
            return files[0]
    raise CheckpointError(f"no weights in {directory}: looked for {_LOOKED_FOR}; is the download complete?")


def _downloaded(repo: str, *, progress: bool) -> Path:
    """Weights of a repository, now in the cache: safetensors if it has them, else .pt."""
    directory = hub.download(repo, hub.SAFETENSORS, progress=progress)
    if not any(directory.glob("*.safetensors*")):
        directory = hub.download(repo, hub.TORCH, progress=progress)
    return weights_in(directory)


def _read(path: Path) -> tuple[Stored, ...]:
    if path.suffix == ".safetensors":
        return read_headers([path])
    if path.suffix == ".json":
        return read_index(path)
    if path.suffix in SUFFIXES:
        return read_state(path)
    raise CheckpointError(f"{path} is of no known kind: expected .safetensors, .index.json, {', '.join(SUFFIXES)}")


def _precision(tensors: Sequence[Stored]) -> Precision:
    if any(stored.dtype is torch.float8_e4m3fn for stored in tensors):
        return "fp8"
    wide = sum(stored.nbytes for stored in tensors if stored.dtype is torch.float32)
    return "float32" if 2 * wide > sum(stored.nbytes for stored in tensors) else "bfloat16"
