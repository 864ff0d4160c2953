"""The sizes of a checkpoint, read from its config.json; the published model's sizes are the defaults.

Owns parsing and consistency of sizes. What the engine does with a model is `options.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mdinfer.errors import ConfigError

T = TypeVar("T")
_MOST = 1 << 24
_MOST_CONTEXT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    num_experts: int = 64
    start_layer: int = 4
    experts_per_token: int = 8
    expert_inner_dim: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    dim: int = 2048
    ff_dim: int = 8192
    n_layers: int = 24
    vocab_size: int = 51200
    max_context: int = 4096
    n_heads: int = 32
    moe: MoEConfig = MoEConfig()

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def is_moe(self, layer: int) -> bool:
        return layer >= self.moe.start_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    enc_dim: int = 1152
    enc_patch_size: int = 14
    enc_n_layers: int = 27
    enc_ff_dim: int = 4304
    enc_n_heads: int = 16
    proj_out_dim: int = 2048
    crop_size: int = 378
    in_channels: int = 3
    max_crops: int = 12
    overlap_margin: int = 4
    proj_inner_dim: int = 8192

    @property
    def head_dim(self) -> int:
        return self.enc_dim // self.enc_n_heads

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.crop_size // self.enc_patch_size

    @property
    def positions(self) -> int:
        """Text positions one image takes (729 in the published model)."""
        return self.grid * self.grid

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.enc_patch_size**2


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionConfig:
    dim: int = 2048
    coord_feat_dim: int = 256
    coord_out_dim: int = 1024
    size_feat_dim: int = 512
    size_out_dim: int = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    caption_short: tuple[int, ...] = (1, 32708, 2, 12492, 3)
    caption_normal: tuple[int, ...] = (1, 32708, 2, 6382, 3)
    caption_long: tuple[int, ...] = (1, 32708, 2, 4059, 3)
    query: Template = Template(prefix=(1, 15381, 2), suffix=(3,))
    detect: Template = Template(prefix=(1, 7235, 476, 2), suffix=(3,))
    point: Template = Template(prefix=(1, 2581, 2), suffix=(3,))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """Control token ids, all below 16, and the prompt templates built from them."""

    bos_id: int = 0
    eos_id: int = 0
    answer_id: int = 3
    thinking_id: int = 4
    coord_id: int = 5
    size_id: int = 6
    start_ground_points_id: int = 7
    end_ground_id: int = 9
    templates: Templates = Templates()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    region: RegionConfig = RegionConfig()
    tokenizer: TokenConfig = field(default_factory=TokenConfig)

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a `config.json`. Raises ConfigError if it is not JSON or its sizes disagree."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: object) -> ModelConfig:
        """Build from the parsed config.json: sections under "config" or at the top level, or absent."""
        root = _mapping(raw, "config.json")
        root = _mapping(root.get("config", root), "config")
        text = dict(_mapping(root.get("text", {}), "text"))
        moe = dict(_mapping(text.pop("moe", None) or {}, "text.moe"))
        for alias, name in (("n_experts", "num_experts"), ("n_experts_per_tok", "experts_per_token")):
            if alias in moe:
                moe.setdefault(name, moe.pop(alias))
        n_heads = text.get("n_heads", TextConfig().n_heads)
        if text.get("n_kv_heads", n_heads) != n_heads:
            raise ConfigError(f"n_kv_heads {text['n_kv_heads']} differs from n_heads {n_heads}: unsupported")
        tokens = dict(_mapping(root.get("tokenizer", {}), "tokenizer"))
        templates = _templates(_mapping(tokens.pop("templates", None) or {}, "tokenizer.templates"))
        return cls(
            text=_build(TextConfig, {**text, "moe": _build(MoEConfig, moe, "text.moe")}, "text"),
            vision=_build(VisionConfig, _mapping(root.get("vision", {}), "vision"), "vision"),
            region=_build(RegionConfig, _mapping(root.get("region", {}), "region"), "region"),
            tokenizer=_build(TokenConfig, {**tokens, "templates": templates}, "tokenizer"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The published config.json's shape, which `from_dict` reads back to an equal object."""
        raw = dataclasses.asdict(self)
        raw["text"]["n_kv_heads"] = self.text.n_heads
        templates = raw["tokenizer"]["templates"]
        raw["tokenizer"]["templates"] = {
            "caption": {length: list(templates[f"caption_{length}"]) for length in ("short", "normal", "long")},
            **{
                skill: {part: list(ids) for part, ids in templates[skill].items()}
                for skill in ("query", "detect", "point")
            },
        }
        return {"model_type": "moondream3", "config": raw}


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"config section {name!r} must be an object, found {type(value).__name__}")
    return value


def _build(kind: type[T], values: Mapping[str, Any], name: str) -> T:
    """Make a config section from the keys it knows; integers must be positive (0 is fine for ids)."""
    known: dict[str, Any] = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]  # every kind here is a dataclass
        if item.name not in values:
            continue
        value = values[item.name]
        least = 0 if item.name.endswith("_id") or item.name in ("start_layer", "overlap_margin") else 1
        most = _MOST_CONTEXT if item.name == "max_context" else _MOST
        if item.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
            raise ConfigError(f"{name}.{item.name} must be an integer from {least} to {most}, found {value!r:.40}")
        known[item.name] = value
    return kind(**known)


def _ids(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(i, int) and i >= 0 for i in value):
        raise ConfigError(f"tokenizer.templates.{name} must be a list of token ids, found {value!r}")
    return tuple(value)


def _templates(raw: Mapping[str, Any]) -> Templates:
    """Templates of the config over the published defaults; a null template keeps the default."""
    known: dict[str, Any] = {}
    for length, ids in _mapping(raw.get("caption") or {}, "tokenizer.templates.caption").items():
        if length in ("short", "normal", "long"):
            known[f"caption_{length}"] = _ids(ids, f"caption.{length}")
    for skill in ("query", "detect", "point"):
        if parts := raw.get(skill):
            parts = _mapping(parts, f"tokenizer.templates.{skill}")
            default: Template = getattr(Templates(), skill)
            known[skill] = Template(
                prefix=_ids(parts.get("prefix", default.prefix), f"{skill}.prefix"),
                suffix=_ids(parts.get("suffix", default.suffix), f"{skill}.suffix"),
            )
    return Templates(**known)


def _check(config: ModelConfig) -> None:
    """Raise ConfigError where sections cannot belong to one model."""
    text, vision, region, tokens = config.text, config.vision, config.region, config.tokenizer

    def require(holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(message)

    require(text.dim % text.n_heads == 0, f"text.dim {text.dim} is not a multiple of n_heads {text.n_heads}")
    require(text.head_dim % 4 == 0, f"head size {text.head_dim} is not a multiple of 4, which RoPE needs")
    require(
        text.moe.experts_per_token <= text.moe.num_experts,
        f"experts_per_token {text.moe.experts_per_token} exceeds num_experts {text.moe.num_experts}",
    )
    require(
        vision.enc_dim % vision.enc_n_heads == 0,
        f"vision.enc_dim {vision.enc_dim} is not a multiple of enc_n_heads {vision.enc_n_heads}",
    )
    require(
        vision.crop_size % vision.enc_patch_size == 0,
        f"vision.crop_size {vision.crop_size} is not a multiple of enc_patch_size {vision.enc_patch_size}",
    )
    require(
        vision.grid > 2 * vision.overlap_margin,
        f"overlap_margin {vision.overlap_margin} leaves nothing of a crop of {vision.grid} patches",
    )
    require(vision.in_channels == 3, f"vision.in_channels must be 3 (RGB), found {vision.in_channels}")
    require(
        vision.proj_out_dim == text.dim and region.dim == text.dim,
        f"text.dim {text.dim}, vision.proj_out_dim {vision.proj_out_dim} and region.dim {region.dim} differ",
    )
    require(
        region.coord_feat_dim % 2 == 0 and region.size_feat_dim % 2 == 0 and region.size_out_dim % 2 == 0,
        "region feature and size bin counts must be even",
    )
    for item in dataclasses.fields(tokens):
        if item.name.endswith("_id"):
            value = getattr(tokens, item.name)
            require(0 <= value < 16, f"tokenizer.{item.name} is {value}; control tokens are below 16")
    parts = ("eos_id", "answer_id", "coord_id", "size_id", "start_ground_points_id", "end_ground_id")
    ids = [getattr(tokens, part) for part in parts]
    require(len(set(ids)) == len(ids), f"tokenizer.{', '.join(parts)} must differ, found {ids}")
    longest = max(_template_ids(tokens.templates))
    require(longest < text.vocab_size, f"a template holds id {longest}, text.vocab_size is {text.vocab_size}")


def _template_ids(templates: Templates) -> list[int]:
    captions = (templates.caption_short, templates.caption_normal, templates.caption_long)
    skills = (templates.query, templates.detect, templates.point)
    return [0, *(i for ids in captions for i in ids), *(i for t in skills for i in (*t.prefix, *t.suffix))]
