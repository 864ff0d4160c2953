"""Tiny models by their configs: the parameters each has, and empty ones to be filled."""

from __future__ import annotations

import torch
from torch import Tensor

from mdinfer.config import (
    ModelConfig,
    MoEConfig,
    RegionConfig,
    Template,
    Templates,
    TextConfig,
    TokenConfig,
    VisionConfig,
)

FP8 = torch.float8_e4m3fn
INT8 = torch.int8
INT4 = torch.uint8  # two values in a byte
Weights = dict[str, Tensor]


def tiny_config(*, layers: int = 3, dim: int = 64, experts: int = 4, inner: int = 16) -> ModelConfig:
    """A model with every kind of tensor: two dense text layers at most, then MoE layers."""
    return ModelConfig(
        text=TextConfig(
            dim=dim,
            ff_dim=2 * dim,
            n_layers=layers,
            n_heads=dim // 32,
            vocab_size=48,
            moe=MoEConfig(
                num_experts=experts,
                start_layer=min(2, layers - 1),
                experts_per_token=2,
                expert_inner_dim=inner,
            ),
        ),
        vision=VisionConfig(
            enc_dim=24,
            enc_n_layers=2,
            enc_ff_dim=40,
            enc_n_heads=2,
            proj_out_dim=dim,
            proj_inner_dim=56,
            crop_size=140,
        ),
        region=RegionConfig(dim=dim, coord_feat_dim=16, coord_out_dim=32, size_feat_dim=20, size_out_dim=64),
        tokenizer=small_tokens(),
    )


def small_tokens() -> TokenConfig:
    template = Template(prefix=(1, 20, 2), suffix=(3,))
    return TokenConfig(
        templates=Templates(
            caption_short=(1, 21, 2, 22, 3),
            caption_normal=(1, 21, 2, 23, 3),
            caption_long=(1, 21, 2, 24, 3),
            query=template,
            detect=template,
            point=template,
        )
    )


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a model by name, float8 scales left out."""
    text, vision, region = config.text, config.vision, config.region
    D, H, E, inner = text.dim, text.n_heads, text.moe.num_experts, text.moe.expert_inner_dim
    shapes: dict[str, tuple[int, ...]] = {"text.wte": (text.vocab_size, D)}

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    for n in range(text.n_layers):
        block = f"text.blocks.{n}"
        norm(f"{block}.ln", D)
        linear(f"{block}.attn.qkv", 3 * D, D)
        linear(f"{block}.attn.proj", D, D)
        shapes[f"{block}.attn.tau.wqwv"], shapes[f"{block}.attn.tau.alpha"] = (2 * H, 3 * D), (H,)
        if text.is_moe(n):
            linear(f"{block}.mlp.router", E, D)
            shapes[f"{block}.mlp.fc1.weight"], shapes[f"{block}.mlp.fc2.weight"] = (E, 2 * inner, D), (E, D, inner)
        else:
            linear(f"{block}.mlp.fc1", text.ff_dim, D)
            linear(f"{block}.mlp.fc2", D, text.ff_dim)
    norm("text.post_ln", D)
    linear("text.lm_head", text.vocab_size, D)
    C = vision.enc_dim
    linear("vision.patch_emb", C, vision.patch_dim)
    shapes["vision.pos_emb"] = (1, vision.positions, C)
    for n in range(vision.enc_n_layers):
        block = f"vision.blocks.{n}"
        norm(f"{block}.ln1", C)
        norm(f"{block}.ln2", C)
        linear(f"{block}.attn.qkv", 3 * C, C)
        linear(f"{block}.attn.proj", C, C)
        linear(f"{block}.mlp.fc1", vision.enc_ff_dim, C)
        linear(f"{block}.mlp.fc2", C, vision.enc_ff_dim)
    norm("vision.post_ln", C)
    linear("vision.proj_mlp.fc1", vision.proj_inner_dim, 2 * C)
    linear("vision.proj_mlp.fc2", D, vision.proj_inner_dim)
    linear("region.coord_encoder", D, region.coord_feat_dim)
    linear("region.coord_decoder", region.coord_out_dim, D)
    linear("region.size_encoder", D, region.size_feat_dim)
    linear("region.size_decoder", region.size_out_dim, D)
    norm("region.ln", D)
    shapes["region.coord_features"] = (1, region.coord_feat_dim // 2)
    shapes["region.size_features"] = (2, region.size_feat_dim // 2)
    return shapes


_LINEARS = (".attn.qkv.weight", ".attn.proj.weight", ".mlp.fc1.weight", ".mlp.fc2.weight")


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Of those that may be fp8."""
    fits = len(shape) == 2 and shape[0] % 16 == shape[1] % 16 == 0
    return fits and (name.endswith(_LINEARS) or name.startswith("vision.proj_mlp.")) and name.endswith(".weight")


def is_expert(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and name.startswith("text.blocks.")


def empty_targets(
    config: ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    *,
    experts: torch.dtype | None = None,
    linears: torch.dtype | None = None,
) -> Weights:
    """What the model would hand to the loader: NaN everywhere, scales beside float8, int8 and int4 weights.

    For int8 and int4, whose bytes cannot be NaN, -128 and 255 in their place.
    """
    targets = {}
    for name, shape in parameter_shapes(config).items():
        kind = (experts or dtype) if is_expert(name, shape) else dtype
        if linears and is_linear(name, shape):
            kind = linears
        if kind is INT4:
            groups = (shape[-1] + 127) // 128
            targets[name] = torch.full((*shape[:-1], 64 * groups), 255, dtype=INT4)
            targets[name.removesuffix("weight") + "scale"] = torch.full(
                (*shape[:-1], groups, 2), float("nan"), dtype=torch.bfloat16
            )
            continue
        if kind is INT8:
            targets[name] = torch.full(shape, -128, dtype=INT8)
            targets[name.removesuffix("weight") + "scale"] = torch.full(shape[:-1], float("nan"), dtype=torch.bfloat16)
            continue
        targets[name] = torch.tensor(float("nan")).to(kind).expand(shape).clone()
        if kind is FP8:
            targets[name.removesuffix("weight") + "scale"] = torch.full(shape[:-1], float("nan"))
    return targets
