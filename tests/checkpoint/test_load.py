"""Round trips: what is written in any layout arrives in the parameters, value for value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from mdinfer.checkpoint import Checkpoint, find_checkpoint, quantise_groups, quantise_rows
from mdinfer.checkpoint import load as checkpoint_load
from mdinfer.checkpoint.tensors import blocks, extent
from mdinfer.config import ModelConfig
from mdinfer.errors import CheckpointError
from tests.checkpoint.models import (
    FP8,
    INT4,
    Weights,
    empty_targets,
    is_expert,
    is_linear,
    parameter_shapes,
    tiny_config,
)
from tests.checkpoint.writers import (
    WRITERS,
    dequantised,
    fp8_names,
    random_canonical_weights,
    write_config,
    write_fp8_pt,
    write_fp8_safetensors,
    write_published,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoints"


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return tiny_config()


def load(path: Path, targets: Weights) -> Checkpoint:
    found = find_checkpoint(path)
    found.load_into(targets, progress=False)
    return found


def assert_same(targets: Weights, expected: Mapping[str, Tensor]) -> None:
    assert targets.keys() == expected.keys()
    for name, values in targets.items():
        assert torch.equal(values.float(), expected[name].to(values.dtype).float()), name


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", WRITERS)
def test_floats_are_cast(
    layout: str, stored: torch.dtype, target: torch.dtype, config: ModelConfig, tmp_path: Path
) -> None:
    weights = random_canonical_weights(config, dtype=stored)
    WRITERS[layout](tmp_path, config, weights)
    targets = empty_targets(config, target)
    found = load(tmp_path, targets)
    assert_same(targets, weights)
    assert found.layout == layout
    assert found.config == config
    assert found.directory == tmp_path
    assert found.precision == ("float32" if stored is torch.float32 else "bfloat16")
    assert found.nbytes == sum(values.nbytes for values in weights.values())


@pytest.mark.parametrize("layout", WRITERS)
def test_fp8_is_copied(layout: str, config: ModelConfig, tmp_path: Path) -> None:
    weights = random_canonical_weights(config, fp8=True)
    WRITERS[layout](tmp_path, config, weights)
    targets = empty_targets(config, experts=FP8)
    assert load(tmp_path, targets).precision == "fp8"
    assert_same(targets, weights)


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", WRITERS)
def test_fp8_is_dequantised(layout: str, target: torch.dtype, config: ModelConfig, tmp_path: Path) -> None:
    weights = random_canonical_weights(config, fp8=True)
    WRITERS[layout](tmp_path, config, weights)
    targets = empty_targets(config, target)
    load(tmp_path, targets)
    assert_same(targets, dequantised(weights, target))


@pytest.mark.parametrize("experts", [None, FP8, INT4], ids=str)
@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("layout", WRITERS)
def test_a_parameter_is_told_when_all_of_it_is_there(
    layout: str, fp8: bool, experts: torch.dtype | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once each, with its scales, in blocks of a few rows; what is done to it then is not undone."""
    monkeypatch.setattr(checkpoint_load, "_CPU_BLOCK", 500)
    config = tiny_config(dim=128)
    WRITERS[layout](tmp_path, config, random_canonical_weights(config, fp8=fp8))
    expected, targets = empty_targets(config, experts=experts), empty_targets(config, experts=experts)
    load(tmp_path, expected)
    told: list[str] = []

    def check(name: str) -> None:
        told.append(name)
        for each in (name, name.removesuffix("weight") + "scale"):
            if each in targets:
                assert torch.equal(targets[each].view(torch.uint8), expected[each].view(torch.uint8)), each
                targets[each].zero_()

    find_checkpoint(tmp_path).load_into(targets, progress=False, filled=check)
    assert sorted(told) == sorted(name for name in targets if not name.endswith(".scale"))
    assert not any(bool(values.view(torch.uint8).any()) for values in targets.values())


@pytest.mark.parametrize("layout", WRITERS)
def test_floats_are_quantised(layout: str, config: ModelConfig, tmp_path: Path) -> None:
    weights = random_canonical_weights(config)
    WRITERS[layout](tmp_path, config, weights)
    targets = empty_targets(config, experts=FP8)
    load(tmp_path, targets)
    for name, shape in parameter_shapes(config).items():
        if is_expert(name, shape):
            values, scale = quantise_rows(weights[name])
            assert torch.equal(targets[name].float(), values.float())
            assert torch.equal(targets[name.removesuffix("weight") + "scale"], scale)
        else:
            assert torch.equal(targets[name], weights[name])


@pytest.mark.parametrize("experts", [None, FP8, INT4], ids=["bf16", "fp8", "int4"])
@pytest.mark.parametrize("layout", WRITERS)
def test_linears_are_quantised(layout: str, experts: torch.dtype | None, config: ModelConfig, tmp_path: Path) -> None:
    """In blocks of whole rows; experts of an fp8 file keep what they have, and so does all else."""
    weights = random_canonical_weights(config, fp8=experts is FP8)
    WRITERS[layout](tmp_path, config, weights)
    targets = empty_targets(config, experts=experts, linears=FP8)
    load(tmp_path, targets)
    found = set()
    for name, shape in parameter_shapes(config).items():
        if is_linear(name, shape):
            values, scale = quantise_rows(weights[name])
            assert torch.equal(targets[name].float(), values.float())
            assert torch.equal(targets[name.removesuffix("weight") + "scale"], scale)
            found.add(name)
        elif not (is_expert(name, shape) and experts is INT4):
            assert torch.equal(targets[name].float(), weights[name].float())
    layers = [f"text.blocks.{n}.attn.{part}.weight" for n in range(3) for part in ("qkv", "proj")]
    dense = [f"text.blocks.{n}.mlp.{part}.weight" for n in range(2) for part in ("fc1", "fc2")]
    assert found == {*layers, *dense}  # the tower's widths, 24, 40 and 56, are no multiples of 16


@pytest.mark.parametrize("fp8", [False, True], ids=["floats", "fp8"])
@pytest.mark.parametrize("layout", WRITERS)
def test_all_is_quantised_to_int4(layout: str, fp8: bool, tmp_path: Path) -> None:
    """Of inputs that are a part of a group, and of one and a part."""
    config = tiny_config(dim=192, inner=48)
    weights = random_canonical_weights(config, fp8=fp8)
    WRITERS[layout](tmp_path, config, weights)
    targets = empty_targets(config, experts=INT4)
    load(tmp_path, targets)
    values = dequantised(weights, torch.float32)
    for name, shape in parameter_shapes(config).items():
        if is_expert(name, shape):
            bits, scale = quantise_groups(values[name])
            assert torch.equal(targets[name], bits)
            assert torch.equal(targets[name.removesuffix("weight") + "scale"], scale)
        else:
            assert torch.equal(targets[name].float(), values[name].float())


@pytest.mark.parametrize("part", ["fc1", "fc2"])
def test_int4_of_other_sizes_is_refused(part: str, tmp_path: Path) -> None:
    """Sizes that differ within a group of 128 too."""
    config = tiny_config()
    weights = random_canonical_weights(config)
    name = f"text.blocks.2.mlp.{part}.weight"
    weights[name] = torch.cat((weights[name], weights[name][..., :1]), dim=-1)
    write_published(tmp_path, config, weights)
    with pytest.raises(CheckpointError, match=rf"model\.{name} has shape .*, expected"):
        load(tmp_path, empty_targets(config, experts=INT4))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("prefix", ["model.", "", "_orig_mod.model.", "model._orig_mod."])
def test_published_names(prefix: str, shards: int, config: ModelConfig, tmp_path: Path) -> None:
    weights = random_canonical_weights(config)
    write_published(tmp_path, config, weights, shards, prefix)
    targets = empty_targets(config)
    assert load(tmp_path, targets).layout == "published"
    assert_same(targets, weights)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("tau", ["fused", "split"])
@pytest.mark.parametrize("orig_mod", [False, True], ids=["plain", "orig_mod"])
def test_fp8_safetensors_names(
    orig_mod: bool, tau: Literal["fused", "split"], shards: int, config: ModelConfig, tmp_path: Path
) -> None:
    weights = random_canonical_weights(config, fp8=True)
    write_fp8_safetensors(tmp_path, config, weights, shards, orig_mod=orig_mod, tau=tau)
    targets = empty_targets(config, experts=FP8)
    load(tmp_path, targets)
    assert_same(targets, weights)


@pytest.mark.parametrize("nest", [None, "model", "state_dict"])
@pytest.mark.parametrize("tau", ["fused", "split"])
@pytest.mark.parametrize("orig_mod", [False, True], ids=["plain", "orig_mod"])
def test_fp8_pt_names(
    orig_mod: bool, tau: Literal["fused", "split"], nest: str | None, config: ModelConfig, tmp_path: Path
) -> None:
    weights = random_canonical_weights(config, fp8=True)
    path = write_fp8_pt(tmp_path, config, weights, orig_mod=orig_mod, tau=tau, nest=nest)
    targets = empty_targets(config, experts=FP8)
    assert load(path, targets).path == path
    assert_same(targets, weights)


def test_pt_of_strided_parameters(config: ModelConfig, tmp_path: Path) -> None:
    weights = random_canonical_weights(config)
    state = fp8_names(weights, orig_mod=False, tau="fused")
    odd = {
        name: torch.nn.Parameter(values.T.contiguous().T if values.ndim == 2 else values)
        for name, values in state.items()
    }
    write_config(tmp_path, config)
    torch.save(odd, tmp_path / "weights.pt")
    targets = empty_targets(config)
    load(tmp_path, targets)
    assert_same(targets, weights)


def test_targets_of_every_kind(config: ModelConfig, tmp_path: Path) -> None:
    """Parameters with gradients, views of a packed one, and tensors of inference mode are filled in place."""
    weights = random_canonical_weights(config)
    write_published(tmp_path, config, weights)
    targets = empty_targets(config)
    targets["text.wte"] = torch.nn.Parameter(targets["text.wte"])
    name = "text.blocks.2.mlp.fc1.weight"
    targets[name] = torch.empty(*targets[name].shape[:2], 100, dtype=torch.bfloat16)[..., : config.text.dim]
    with torch.inference_mode():
        targets["text.post_ln.weight"] = torch.empty(config.text.dim, dtype=torch.bfloat16)
    before = {name: values.data_ptr() for name, values in targets.items()}
    load(tmp_path, targets)
    assert_same(targets, weights)
    assert before == {name: values.data_ptr() for name, values in targets.items()}


@pytest.mark.parametrize("name", ["tiny-a", "tiny-b"])
def test_golden_checkpoints(name: str) -> None:
    found = find_checkpoint(GOLDEN / name)
    targets = empty_targets(found.config, torch.float32)
    found.load_into(targets, progress=False)
    assert all(values.isfinite().all() for values in targets.values())
    # Every golden weight is exact in bfloat16: loading it so loses nothing.
    halved = empty_targets(found.config, torch.bfloat16)
    found.load_into(halved, progress=False)
    assert_same(halved, targets)
    assert found.layout == "published"
    assert (found.precision, found.config.text.dim, found.config.text.moe.num_experts) == {
        "tiny-a": ("float32", 128, 8),
        "tiny-b": ("bfloat16", 256, 64),
    }[name]


def test_the_number_of_threads_is_restored(config: ModelConfig, tmp_path: Path) -> None:
    write_published(tmp_path, config, random_canonical_weights(config))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        load(tmp_path, empty_targets(config))
        weights = random_canonical_weights(config)
        weights["text.wte"][0, 0] = float("nan")
        write_published(tmp_path, config, weights)
        with pytest.raises(CheckpointError, match="NaN"):
            load(tmp_path, empty_targets(config))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_progress_is_a_bar_on_stderr_or_nothing(
    config: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_published(tmp_path, config, random_canonical_weights(config))
    found = find_checkpoint(tmp_path, progress=False)
    found.load_into(empty_targets(config), progress=False)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")
    found.load_into(empty_targets(config))
    out, err = capsys.readouterr()
    assert out == ""
    assert "loading weights: 100%" in err


@pytest.mark.parametrize("limit", [1, 7, 12, 24, 1000])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 4, 2), (2, 2, 3, 2)], ids=str)
def test_blocks_cover_a_shape_in_order(shape: tuple[int, ...], limit: int) -> None:
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    seen = 0
    for block in blocks(shape, limit):
        first, size = extent(shape, block)
        part = values[block]
        assert (first, size) == (seen, tuple(part.shape))
        assert torch.equal(part.flatten(), torch.arange(seen, seen + part.numel()))
        assert part.numel() <= max(limit, shape[-1] if len(shape) > 1 else 1)
        seen += part.numel()
    assert seen == values.numel()
