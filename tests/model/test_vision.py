"""The vision tower against the golden tensors: 1e-4 in float32, as the README of the golden data gives it."""

from __future__ import annotations

import functools

import pytest
import torch

from mdinfer.kernels import joined_map
from tests.golden_data import CHECKPOINTS, crops_of, data, model, tensors

TOLERANCE = 1e-4
PICTURES = [(name, stem) for name in CHECKPOINTS for stem in data(name, "vision")]


@functools.cache
def run(name: str, stem: str) -> dict[str, torch.Tensor]:
    """All crops at every stage, in the names of vision.json."""
    facts, tower = data(name, "vision")[stem], model(name).vision
    crops, tiling = crops_of(facts["image"], tuple(facts["tiling"])), tuple(facts["tiling"])
    assert len(crops) == facts["num_crops"]
    seen: dict[str, torch.Tensor] = {}
    hooks = [tower.blocks[0].register_forward_pre_hook(lambda _, args: seen.update({"vision.embed": args[0]}))]
    for i, block in enumerate(tower.blocks):
        hooks.append(block.register_forward_hook(lambda *call, key=f"vision.block.{i}": seen.update({key: call[2]})))
    try:
        with torch.inference_mode():
            out = tower.crop_features(crops)
            seen["vision.out"] = out
            seen["vision.pooled"] = joined_map(out, tiling, 4)[:, out.shape[2] :]
            seen["vision.projected"] = tower.project([(out, tiling)])[0]
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def worst(found: torch.Tensor, golden: torch.Tensor) -> float:
    assert found.shape == golden.shape
    return (found - golden).abs().max().item()


@pytest.mark.parametrize(("name", "stem"), PICTURES)
def test_every_stage_is_golden(name: str, stem: str) -> None:
    seen, golden = run(name, stem), tensors(name, "vision")
    blocks = model(name).config.vision.enc_n_layers
    stages = {"embed": "vision.embed", "out": "vision.out"}
    stages |= {f"block{i}": f"vision.block.{i}" for i in range(blocks)}
    every = 27 if name == "tiny-a" else 81
    for short, full in stages.items():
        assert worst(seen[full][:, ::every], golden[f"{stem}.{short}.every{every}"]) <= TOLERANCE, short
    assert worst(seen["vision.pooled"][::9], golden[f"{stem}.pooled.every9"]) <= TOLERANCE
    assert worst(seen["vision.projected"], golden[f"{stem}.projected"]) <= TOLERANCE
    if name == "tiny-a":
        assert worst(seen["vision.out"][0], golden[f"{stem}.out.crop0"]) <= TOLERANCE


@pytest.mark.parametrize(("name", "stem"), PICTURES)
def test_norms_of_whole_tensors_are_golden(name: str, stem: str) -> None:
    """Rows that are not stored are held by their Frobenius norm; rounding moves it by about 1e-6 of itself."""
    norms = data(name, "vision")[stem]["frobenius"]
    for key, found in run(name, stem).items():
        assert found.double().norm().item() == pytest.approx(norms[key], rel=1e-5), key


def test_pictures_together_and_in_parts_are_the_same() -> None:
    """Crops are independent: how many go through at once, and beside which others, is rounding alone."""
    tower, facts = model("tiny-a").vision, data("tiny-a", "vision")
    crops = [crops_of(f["image"], tuple(f["tiling"])) for f in facts.values()]
    tilings = [tuple(f["tiling"]) for f in facts.values()]
    with torch.inference_mode():
        together = tower(torch.cat(crops), tilings, 100)
        in_parts = tower(torch.cat(crops), tilings, 4)
    for stem, one, other in zip(facts, together, in_parts, strict=True):
        assert worst(one, tensors("tiny-a", "vision")[f"{stem}.projected"]) <= TOLERANCE
        assert worst(other, tensors("tiny-a", "vision")[f"{stem}.projected"]) <= TOLERANCE


def test_a_picture_that_is_kept_keeps_no_other() -> None:
    """Projected together or alone, each picture's rows are all that its memory holds."""
    tower, image = model("tiny-a").vision, data("tiny-a", "vision")["p_640x480"]["image"]
    for count in (1, 3):
        crops = crops_of(image, (1, 1)).repeat(count, 1, 1, 1)
        with torch.inference_mode():
            found = tower(crops, [(1, 1)] * count, 100)
        assert [rows.untyped_storage().nbytes() for rows in found] == [rows.nbytes for rows in found]


def test_padded_patches_embed_as_they_are() -> None:
    """In bfloat16 588 columns are padded to 592; the parameter that checkpoints fill is the part without padding."""
    embedding = model("tiny-a", torch.bfloat16).vision.patch_emb
    assert embedding.padded.shape == (144, 592) and not embedding.padded[:, 588:].any()
    weight = model("tiny-a", torch.bfloat16).weights()["vision.patch_emb.weight"]
    assert weight.shape == (144, 588) and torch.equal(weight, embedding.padded[:, :588])
    crops = crops_of(data("tiny-a", "vision")["p_640x480"]["image"], (1, 1))[:1]
    positions = torch.zeros(1, 729, 144, dtype=torch.bfloat16)
    with torch.inference_mode():
        found = embedding(crops, positions)
        exact = model("tiny-a").vision.patch_emb(crops, positions.float())
    assert (found - exact).norm() < 2**-8 * exact.norm()
