"""Tiny checkpoints of every layout, written from weights under the library's own parameter names.

The names of each layout are spelled here a second time, so that a slip in `layouts.py` shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from mdinfer.config import ModelConfig
from tests.checkpoint.models import FP8, Weights, is_expert, parameter_shapes


def random_canonical_weights(
    config: ModelConfig, seed: int = 0, *, dtype: torch.dtype = torch.bfloat16, fp8: bool = False
) -> Weights:
    """Normal values for every parameter; with `fp8`, experts in float8 with uneven scales beside them."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        values = torch.randn(shape, generator=draw)
        if fp8 and is_expert(name, shape):
            weights[name] = (values * 60).to(FP8)
            scales = torch.rand(shape[:-1], generator=draw) * 0.01 + 1e-4
            weights[name.removesuffix("weight") + "scale"] = scales
        else:
            weights[name] = values.to(dtype)
    return weights


def dequantised(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> Weights:
    """The twin of float8 weights without scales: scale * value in float32, rounded to `dtype`."""
    twin = {}
    for name, values in weights.items():
        if values.dtype is FP8:
            scale = weights[name.removesuffix("weight") + "scale"]
            twin[name] = (values.float() * scale[..., None]).to(dtype)
        elif not name.endswith(".scale"):
            twin[name] = values
    return twin


def write_config(directory: Path, config: ModelConfig) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")


def write_shards(directory: Path, tensors: Mapping[str, Tensor], shards: int) -> Path:
    """`model.safetensors`, or that many shards and their index; returns the file to open."""
    tensors = {name: values.contiguous() for name, values in tensors.items()}
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory / "model.safetensors"
    shard_of = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in sorted(set(shard_of.values())):
        save_file({name: tensors[name] for name in tensors if shard_of[name] == shard}, directory / shard)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shard_of}), encoding="utf-8")
    return index


def write_published(
    directory: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    shards: int = 1,
    prefix: str = "model.",
) -> Path:
    """The published layout: tau in two tensors, everything else by its parameter's name."""
    write_config(directory, config)
    return write_shards(directory, published_names(weights, prefix), shards)


def published_names(weights: Mapping[str, Tensor], prefix: str = "model.") -> Weights:
    named = {}
    for name, values in weights.items():
        if name.endswith(".tau.wqwv"):
            wq, wv = values.chunk(2)
            stem = prefix + name.removesuffix("wqwv")
            named[stem + "wq"], named[stem + "wv"] = wq, wv
        else:
            named[prefix + name] = values
    return named


def write_fp8_safetensors(
    directory: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    shards: int = 1,
    *,
    orig_mod: bool = False,
    tau: Literal["fused", "split"] = "fused",
) -> Path:
    """The float8 layout; with bf16 experts in `weights` it has no scales."""
    write_config(directory, config)
    return write_shards(directory, fp8_names(weights, orig_mod=orig_mod, tau=tau), shards)


def write_fp8_pt(
    directory: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    orig_mod: bool = True,
    tau: Literal["fused", "split"] = "split",
    nest: str | None = None,
) -> Path:
    """`model_fp8.pt`, its state dict at the top or under the key `nest`."""
    write_config(directory, config)
    state = fp8_names(weights, orig_mod=orig_mod, tau=tau)
    path = directory / "model_fp8.pt"
    torch.save(state if nest is None else {nest: state, "step": 7}, path)
    return path


WRITERS: dict[str, Callable[[Path, ModelConfig, Mapping[str, Tensor]], Path]] = {
    "published": write_published,
    "fp8_safetensors": write_fp8_safetensors,
    "fp8_pt": write_fp8_pt,
}

_FP8_NAMES = (  # (start of a parameter's name, start of its name in the float8 layout), first match first
    ("text.wte", "text_model.transformer.embd.wte.weight"),
    ("text.post_ln.", "text_model.lm_head.ln."),
    ("text.lm_head.", "text_model.lm_head.linear."),
    ("vision.patch_emb.", "vision_encoder.encoder.model.visual.patch_embed.linear."),
    ("vision.pos_emb", "vision_encoder.encoder.model.visual.pos_embed"),
    ("vision.blocks.", "vision_encoder.encoder.model.visual.blocks."),
    ("vision.post_ln.", "vision_encoder.encoder.model.visual.norm."),
    ("vision.proj_mlp.", "vision_encoder.projection.mlp."),
    ("region.coord_encoder.", "region_model.coordinate_encoder."),
    ("region.coord_decoder.", "region_model.coordinate_head."),
    ("region.size_encoder.", "region_model.size_encoder."),
    ("region.size_decoder.", "region_model.size_head."),
    ("region.ln.", "region_model.ln."),
    ("region.coord_features", "region_model.coordinate_features.weight"),
    ("region.size_features", "region_model.size_features.weight"),
)
_FP8_TEXT = {
    "attn.qkv": "mixer.Wqkv",
    "attn.proj": "mixer.out_proj",
    "attn.tau.wqwv": "tau_wqwv",
    "attn.tau.alpha": "tau_alpha",
    "mlp.router": "gate",
}
_FP8_EXPERTS = {
    "mlp.fc1.weight": "mlp.experts.weight",
    "mlp.fc2.weight": "mlp.output_experts.weight",
    "mlp.fc1.scale": "moe_quant.up_scale",
    "mlp.fc2.scale": "moe_quant.down_scale",
}


def fp8_names(weights: Mapping[str, Tensor], *, orig_mod: bool, tau: Literal["fused", "split"]) -> Weights:
    named: Weights = {}
    for parameter, values in weights.items():
        name = _fp8_name(parameter, expert=values.ndim == 3 or parameter.endswith(".scale"))
        if orig_mod:
            name = name.replace(".transformer.", "._orig_mod.transformer.").replace(".visual.", "._orig_mod.visual.")
        if name.endswith("tau_wqwv") and tau == "split":
            stem = name.removesuffix("wqwv")
            named[stem + "wq"], named[stem + "wv"] = (half.clone() for half in values.chunk(2))
        else:
            named[name] = values.T.contiguous() if parameter.endswith("_features") else values
    return named


def _fp8_name(parameter: str, *, expert: bool) -> str:
    if parameter.startswith("text.blocks."):
        number, rest = parameter.removeprefix("text.blocks.").split(".", 1)
        table = _FP8_EXPERTS if expert else _FP8_TEXT
        for ours, theirs in table.items():
            rest = rest.replace(ours, theirs)
        return f"text_model.transformer.h.{number}.{rest}"
    for ours, theirs in _FP8_NAMES:
        if parameter.startswith(ours):
            name = theirs + parameter.removeprefix(ours)
            return name.replace(".ln1.", ".norm1.").replace(".ln2.", ".norm2.")
    raise AssertionError(parameter)
