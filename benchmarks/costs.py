"""What a step must move and compute, from a model's sizes alone: bytes and FLOPs of decoding, prefill and vision.

Owns the arithmetic and knows no chip and no kernel. What can stay on the chip costs no bytes: activations, and within
a prefill the keys that it has just made. So these are the least costs there can be.

A = experts a token takes, E experts, T rows; each expert is taken by a row with probability A/E, so that T rows
touch E (1 - (1 - A/E)^T) of them if the router spreads its choices evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mdinfer.config import ModelConfig, RegionConfig, TextConfig, VisionConfig
from mdinfer.kernels import fits_fp8

Rate = Literal["bf16", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Bytes of a number, and `scale` bytes for every `group` numbers of a row (0: for the whole row)."""

    number: float
    scale: float = 0.0
    group: int = 0
    rate: Rate = "bf16"

    def numbers(self, rows: float, columns: int) -> float:
        """Bytes of a matrix without its scales; rows are made of whole groups."""
        if self.group:
            columns = -(-columns // self.group) * self.group
        return self.number * rows * columns

    def scales(self, rows: float, columns: int) -> float:
        """Bytes of the scales of a matrix."""
        groups = -(-columns // self.group) if self.group else 1
        return self.scale * rows * groups


# int4 keeps a step and a least value for each group, both bfloat16.
EXPERTS = {
    "float32": Storage(number=4),
    "bf16": Storage(number=2),
    "fp8": Storage(number=1, scale=4, rate="fp8"),
    "int8": Storage(number=1, scale=2),
    "int4": Storage(number=0.5, scale=4, group=128),
}
KV = {"float32": Storage(number=4), "bf16": Storage(number=2), "fp8": Storage(number=1, scale=4)}
BASE = {"float32": 4, "bf16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """dtype of what is not quantised; experts, keys and values by name.

    linears   "fp8" where the products of attention, dense layers and the vision tower are, but for shapes that cannot
              be; "bf16": they are in `dtype`
    """

    dtype: str = "bf16"
    experts: str = "bf16"
    kv: str = "bf16"
    linears: Rate = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of work.

    bulk    bytes of matrices, keys and values
    rest    bytes of what goes with them: biases, norms, scales
    flops   at the rate that `rate` names
    """

    name: str
    bulk: float
    rest: float = 0.0
    flops: float = 0.0
    rate: Rate = "bf16"

    @property
    def bytes(self) -> float:
        return self.bulk + self.rest


Cost = tuple[Part, ...]


def bare(cost: Cost) -> Cost:
    """Matrices, keys and values, and scales of groups: the usual estimate, some percent less."""
    small = ("temperatures", "router", "norms", "embedding")
    return tuple(replace(part, rest=0.0) for part in cost if part.name not in small)


def distinct_experts(rows: int, experts: int, taken: int) -> float:
    """Expected number of experts that `rows` rows touch together."""
    return experts * (1 - (1 - taken / experts) ** rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """rows computed, those whose logits are wanted, cached positions read, and pairs of query and key."""

    rows: int
    logits: int
    cached: int
    pairs: int


def decoding(batch: int, context: int) -> Step:
    """One token each of `batch` sequences after `context` positions."""
    return Step(rows=batch, logits=batch, cached=batch * context, pairs=batch * (context + 1))


def prefilling(requests: int, prompt: int, *, cached: int = 0, block: int = 0) -> Step:
    """Prompts whose first `cached` positions are in the cache; the first `block` attend to each other both ways."""
    new = prompt - cached
    pairs = sum(range(cached + 1, prompt + 1))
    if not cached:
        pairs += block * block - sum(range(1, block + 1))
    return Step(rows=requests * new, logits=requests, cached=requests * cached, pairs=requests * pairs)


def kv_bytes(text: TextConfig, kv: str) -> tuple[float, float]:
    """Keys and values of one position in all layers: bytes of the numbers, and of their scales."""
    rows = 2 * text.n_layers * text.n_heads
    return rows * text.head_dim * KV[kv].number, KV[kv].scales(rows, text.head_dim)


def text_step(text: TextConfig, step: Step, precision: Precision) -> Cost:
    """A pass through the decoder and its head."""
    b, T, D, H, L = BASE[precision.dtype], step.rows, text.dim, text.n_heads, text.n_layers
    F, rate = text.ff_dim, precision.linears
    moe, dense = text.moe, min(text.moe.start_layer, L)
    A, E, inner = moe.experts_per_token, moe.num_experts, moe.expert_inner_dim
    sparse = L - dense
    touched = sparse * distinct_experts(T, E, A)
    kv, kv_scales = kv_bytes(text, precision.kv)
    matrices = 4 * D * D * L
    mlp = 2 * D * F * dense
    attention, attention_scales = _linear_bytes([(3 * D, D), (D, D)], precision)
    layer, layer_scales = _linear_bytes([(F, D), (D, F)], precision)
    numbers, scales = _expert_bytes(text, EXPERTS[precision.experts])
    return (
        Part(name="embedding", bulk=b * T * D),
        Part(name="norms", bulk=0, rest=b * 2 * D * (L + 1)),
        Part(
            name="attention products",
            bulk=attention * L,
            rest=(b * 4 * D + attention_scales) * L,
            flops=2 * matrices * T,
            rate=rate,
        ),
        Part(name="temperatures", bulk=b * 6 * H * D * L, rest=4 * H * L, flops=12 * H * D * L * T),
        Part(
            name="keys and values",
            bulk=kv * (step.cached + T),
            rest=kv_scales * (step.cached + T),
            flops=4 * step.pairs * D * L,
        ),
        Part(
            name="dense layers",
            bulk=layer * dense,
            rest=(b * (F + D) + layer_scales) * dense,
            flops=2 * mlp * T,
            rate=rate,
        ),
        Part(name="router", bulk=b * D * E * sparse, rest=b * E * sparse, flops=2 * D * E * sparse * T),
        Part(
            name="experts",
            bulk=touched * numbers,
            rest=touched * scales,
            flops=6 * D * inner * A * sparse * T,
            rate=EXPERTS[precision.experts].rate,
        ),
        Part(
            name="head",
            bulk=b * D * text.vocab_size,
            rest=b * text.vocab_size,
            flops=2 * D * text.vocab_size * step.logits,
        ),
    )


def _linear_bytes(shapes: Sequence[tuple[int, int]], precision: Precision) -> tuple[float, float]:
    """Of weights (outputs, inputs): numbers, and scales where there are some."""
    plain, fp8 = Storage(number=BASE[precision.dtype]), EXPERTS["fp8"]
    kept = [(fp8 if precision.linears == "fp8" and fits_fp8(*shape) else plain, shape) for shape in shapes]
    numbers = sum(each.numbers(*shape) for each, shape in kept)
    return numbers, sum(each.scales(*shape) for each, shape in kept)


def _expert_bytes(text: TextConfig, kept: Storage) -> tuple[float, float]:
    """Of one expert: numbers with one scale of two bytes a group, if there are groups, and what scales there are else.

    A row is an output channel.
    """
    inner = text.moe.expert_inner_dim
    shapes = ((2 * inner, text.dim), (text.dim, inner))
    numbers = sum(kept.numbers(rows, columns) for rows, columns in shapes)
    scales = sum(kept.scales(rows, columns) for rows, columns in shapes)
    usual = scales * 2 / kept.scale if kept.group else 0.0
    return numbers + usual, scales - usual


def vision_pass(vision: VisionConfig, crops: int, precision: Precision, pictures: int = 1) -> Cost:
    """`crops` crops of `pictures` pictures through the tower and the projection."""
    b, C, F, P = BASE[precision.dtype], vision.enc_dim, vision.enc_ff_dim, vision.positions
    L, rows, inner, out = vision.enc_n_layers, crops * vision.positions, vision.proj_inner_dim, vision.proj_out_dim
    block, patch = 4 * C * C + 2 * C * F, vision.patch_dim * C
    projection = (2 * C + out) * inner
    tower, tower_scales = _linear_bytes([(3 * C, C), (C, C), (F, C), (C, F)], precision)
    projected, projected_scales = _linear_bytes([(inner, 2 * C), (out, inner)], precision)
    return (
        Part(name="pixels", bulk=crops * 3 * vision.crop_size**2),
        Part(
            name="tower products",
            bulk=L * tower,
            rest=L * (b * (9 * C + F) + tower_scales) + b * 2 * C,
            flops=2 * L * block * rows,
            rate=precision.linears,
        ),
        Part(name="patches", bulk=b * patch, rest=b * (C + P * C), flops=2 * patch * rows),
        Part(name="tower attention", bulk=0, flops=4 * crops * P * P * C * L),
        Part(
            name="projection",
            bulk=projected,
            rest=b * (inner + out) + projected_scales,
            flops=2 * projection * P * pictures,
            rate=precision.linears,
        ),
    )


def unfused_vision_bytes(vision: VisionConfig, crops: int) -> float:
    """What leaves the chip and comes back, in bfloat16, if nothing is fused: LayerNorm, residual, qkv and GELU rows."""
    return 2 * vision.enc_n_layers * crops * vision.positions * (12 * vision.enc_dim + 2 * vision.enc_ff_dim)


def weight_bytes(config: ModelConfig, precision: Precision) -> int:
    """All weights as the engine holds them, scales included."""
    b, text = BASE[precision.dtype], config.text
    sparse = text.n_layers - min(text.moe.start_layer, text.n_layers)
    of_experts = sparse * text.moe.num_experts * sum(_expert_bytes(text, EXPERTS[precision.experts]))
    step = text_step(text, decoding(1, 0), precision)
    held = sum(part.bytes for part in step if part.name not in ("embedding", "experts", "keys and values"))
    table = b * text.vocab_size * text.dim
    tower = vision_pass(config.vision, 1, precision)
    seen = sum(part.bytes for part in tower if part.name != "pixels")
    return round(of_experts + held + table + seen + _region_bytes(config.region, b))


def _region_bytes(region: RegionConfig, b: int) -> float:
    D, coord, size = region.dim, region.coord_feat_dim, region.size_feat_dim
    encoders = (coord + 1) * D + (size + 1) * D
    decoders = (D + 1) * (region.coord_out_dim + region.size_out_dim)
    return b * (encoders + decoders + 2 * D) + 4 * (coord // 2 + size)
