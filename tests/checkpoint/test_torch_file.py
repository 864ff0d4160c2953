"""`.pt` files that are damaged, unsafe or hold something else are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mdinfer.checkpoint import find_checkpoint
from mdinfer.errors import CheckpointError
from tests.checkpoint.models import empty_targets
from tests.checkpoint.refusals import CONFIG, WEIGHTS, refused
from tests.checkpoint.writers import fp8_names, random_canonical_weights, write_fp8_pt


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return print, ("this code ran",)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999], ids=str)
def test_a_truncated_pt(keep: float, tmp_path: Path) -> None:
    path = write_fp8_pt(tmp_path, CONFIG, WEIGHTS)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep if keep >= 1 else keep * len(raw))])
    refused(path, r"model_fp8\.pt is no readable state dict \(.+\): download it again if it is truncated")


def test_a_pt_that_would_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"text_model.transformer.embd.wte.weight": Evil()}, tmp_path / "model_fp8.pt")
    refused(tmp_path, "is no readable state dict")
    assert "this code ran" not in capsys.readouterr().out


def test_a_pt_of_the_old_format(tmp_path: Path) -> None:
    torch.save(fp8_names(WEIGHTS, orig_mod=False, tau="fused"), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path, "must be saved anew as a state dict")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([torch.zeros(2)], "holds a list: expected a state dict"),
        ({}, "found no tensors at all"),
        ({"epoch": 3}, "entry 'epoch' is a int, expected a tensor"),
        ({3: torch.zeros(2)}, "entry 3 is a Tensor"),
        ({"model": {"a": torch.zeros(2)}}, "not the weights of Moondream 3"),
        ({"text_model.a": torch.eye(2).to_sparse()}, r"tensor text_model\.a .* is torch\.sparse_coo on cpu"),
        ({"text_model.a": torch.empty(2, device="meta")}, "on meta: expected dense, with data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pt_with_something_else(state: object, said: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "model.pt")
    refused(tmp_path, said)


def test_a_pt_that_changed_after_it_was_found(tmp_path: Path) -> None:
    found = find_checkpoint(write_fp8_pt(tmp_path, CONFIG, WEIGHTS))
    write_fp8_pt(tmp_path, CONFIG, random_canonical_weights(CONFIG, dtype=torch.float32))
    with pytest.raises(CheckpointError, match="was changed while it was read; load it again"):
        found.load_into(empty_targets(CONFIG), progress=False)
