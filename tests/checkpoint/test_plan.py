"""Names, shapes and types that do not fit are refused, by name, before anything is copied."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mdinfer.checkpoint import find_checkpoint
from mdinfer.errors import CheckpointError
from tests.checkpoint.models import FP8, empty_targets, tiny_config
from tests.checkpoint.refusals import (
    CONFIG,
    FP8_WEIGHTS,
    H2,
    NORM,
    WEIGHTS,
    drop,
    edit_header,
    fp8,
    published,
    put,
    refused,
)
from tests.checkpoint.writers import (
    WRITERS,
    write_config,
    write_fp8_pt,
    write_fp8_safetensors,
    write_shards,
)


@pytest.mark.parametrize(
    "name",
    [NORM, "model.text.wte", "model.text.blocks.0.attn.tau.wq", "model.text.blocks.2.mlp.fc1.weight"],
)
def test_missing_published(name: str, tmp_path: Path) -> None:
    refused(published(tmp_path, drop(name)), rf"1 tensors are missing \({re.escape(name)}\)")


@pytest.mark.parametrize(
    "name",
    [
        "text_model.transformer.embd.wte.weight",
        H2 + "mixer.Wqkv.bias",
        H2 + "mlp.output_experts.weight",
        "text_model.transformer.h.1.mlp.fc2.weight",
        "vision_encoder.encoder.model.visual.blocks.1.norm2.weight",
        "region_model.size_features.weight",
    ],
)
def test_missing_fp8(name: str, tmp_path: Path) -> None:
    weights = FP8_WEIGHTS if "experts" not in name else WEIGHTS
    refused(fp8(tmp_path, drop(name), weights), rf"1 tensors are missing \({re.escape(name)}\)")


def test_missing_and_unexpected_are_abbreviated(tmp_path: Path) -> None:
    """A config with one layer more or fewer than the weights."""
    path = published(tmp_path, lambda tensors: None)
    write_config(tmp_path, tiny_config(layers=4))
    targets = empty_targets(tiny_config(layers=4))
    with pytest.raises(CheckpointError, match=r"13 tensors are missing \(model\.text\.blocks\.3.* and 9 more\)"):
        find_checkpoint(path).load_into(targets, progress=False)
    write_config(tmp_path, tiny_config(layers=2))
    targets = empty_targets(tiny_config(layers=2))
    with pytest.raises(CheckpointError, match=r"unexpected \(.* and \d+ more\)\. Check that"):
        find_checkpoint(path).load_into(targets, progress=False)


@pytest.mark.parametrize("name", ["model.text.blocks.0.mlp.extra.weight", "lm_head.weight", "model.region.fc"])
def test_unexpected(name: str, tmp_path: Path) -> None:
    refused(published(tmp_path, put(name, torch.zeros(3))), rf"1 are unexpected \({re.escape(name)}\)")


@pytest.mark.parametrize(
    "name", [H2 + "mixer.Wqkv.scale", H2 + "kv_scale", "model.text.wte", "text_model.transformer.h.02.ln.bias"]
)
def test_unexpected_fp8(name: str, tmp_path: Path) -> None:
    refused(fp8(tmp_path, put(name, torch.zeros(3))), rf"1 are unexpected \({re.escape(name)}\)")


def test_scales_of_a_dense_layer_are_unexpected(tmp_path: Path) -> None:
    name = "text_model.transformer.h.0.moe_quant.up_scale"
    refused(fp8(tmp_path, put(name, torch.ones(4, 32))), rf"unexpected \({name}\)")


def test_scales_of_linears_are_made_not_read(tmp_path: Path) -> None:
    """No layout has them: a file that does is another's, whatever the parameters are."""
    name = "model.text.blocks.0.attn.qkv.scale"
    path = published(tmp_path, put(name, torch.ones(192)))
    for linears in (None, FP8):
        with pytest.raises(CheckpointError, match=rf"1 are unexpected \({re.escape(name)}\)"):
            find_checkpoint(path).check(empty_targets(CONFIG, linears=linears))


def test_another_model(tmp_path: Path) -> None:
    path = write_shards(tmp_path, {"encoder.layer.0.weight": torch.zeros(2)}, 1)
    refused(path, "not the weights of Moondream 3: expected names such as model.text.wte.*found encoder.layer.0.weight")


def test_no_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    refused(tmp_path, "found no tensors at all")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (NORM, NORM.removeprefix("model.")),
        (NORM, "model._orig_mod.text.blocks.1.ln.weight"),
        ("model.text.blocks.0.attn.tau.wq", "model.text.blocks.0.attn.tau.wqwv"),
    ],
)
def test_one_parameter_under_two_names(first: str, second: str, tmp_path: Path) -> None:
    message = refused(published(tmp_path, put(second, torch.zeros(64))), "are one parameter")
    assert first in message
    assert second in message


# Shapes and types


@pytest.mark.parametrize("layout", WRITERS)
def test_misshapen(layout: str, tmp_path: Path) -> None:
    weights = dict(WEIGHTS)
    weights["text.post_ln.weight"] = torch.ones(7)
    name = "model.text.post_ln.weight" if layout == "published" else "text_model.lm_head.ln.weight"
    path = WRITERS[layout](tmp_path, CONFIG, weights)
    refused(path, rf"tensor {name} has shape \(7,\), expected \(64,\) from config\.json")


@pytest.mark.parametrize("part", ["tau_wq", "tau_wqwv", "region", "experts", "scale"])
def test_misshapen_parts(part: str, tmp_path: Path) -> None:
    features = "region_model.coordinate_features.weight"
    cases: dict[str, tuple[str, Tensor, str]] = {
        "tau_wq": ("model.text.blocks.0.attn.tau.wq", torch.zeros(4, 192), r"\(4, 192\), expected \(2, 192\)"),
        "tau_wqwv": (H2 + "tau_wqwv", torch.zeros(2, 192), r"\(2, 192\), expected \(4, 192\)"),
        "region": (features, torch.zeros(1, 8), r"\(1, 8\), expected \(8, 1\)"),
        "experts": (
            H2 + "mlp.experts.weight",
            torch.zeros(4, 64, 32).to(FP8),
            r"\(4, 64, 32\), expected \(4, 32, 64\)",
        ),
        "scale": (H2 + "moe_quant.up_scale", torch.ones(4, 16), r"\(4, 16\), expected \(4, 32\)"),
    }
    name, values, said = cases[part]
    path = (published if name.startswith("model.") else fp8)(tmp_path, put(name, values))
    refused(path, rf"{re.escape(name)} has shape {said}")


def test_config_of_another_size(tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    write_config(tmp_path, tiny_config(dim=96))
    with pytest.raises(CheckpointError, match=r"has shape \(.*64\), expected \(.*96\) from config\.json"):
        find_checkpoint(path).load_into(empty_targets(tiny_config(dim=96)), progress=False)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.float64, torch.float8_e5m2, FP8], ids=str
)
@pytest.mark.parametrize("layout", ["safetensors", "pt"])
def test_mistyped(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {**WEIGHTS, "text.blocks.1.attn.proj.weight": torch.ones(64, 64).to(dtype)}
    name, said = "text_model.transformer.h.1.mixer.out_proj.weight", str(dtype).removeprefix("torch.")
    path = (write_fp8_pt if layout == "pt" else write_fp8_safetensors)(tmp_path, CONFIG, weights, orig_mod=False)
    refused(path, f"tensor {name} is {said}, expected float32, bfloat16 or float16")


@pytest.mark.parametrize("experts", [None, FP8], ids=["bf16", "fp8"])
def test_fp8_without_its_scales(experts: torch.dtype | None, tmp_path: Path) -> None:
    refused(
        fp8(tmp_path, drop(H2 + "moe_quant.down_scale")),
        f"{H2}mlp.output_experts.weight is float8 without its scales: expected {H2}moe_quant.down_scale beside it",
        experts=experts,
    )


def test_scales_without_fp8(tmp_path: Path) -> None:
    refused(
        fp8(tmp_path, put(H2 + "mlp.experts.weight", torch.ones(4, 32, 64))),
        f"{H2}moe_quant.up_scale has scales for {H2}mlp.experts.weight: expected float8_e4m3fn there, found float32",
    )


def test_mistyped_scales(tmp_path: Path) -> None:
    path = fp8(tmp_path, put(H2 + "moe_quant.up_scale", torch.ones(4, 32, dtype=torch.int32)))
    refused(path, f"{H2}moe_quant.up_scale is int32, expected float32")


def test_an_unknown_type(tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    edit_header(path, lambda header: header[NORM].update(dtype="F4"))
    refused(path, f"tensor {NORM} in model.safetensors has type F4: expected one of F32")
