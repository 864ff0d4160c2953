"""How the tensors of a checkpoint are named: a name in a file -> a parameter, and back for messages.

Two families of names are in use, `Names`: "published" spells parameters as this library does (after
`model.`), "fp8" is that of the float8 releases. In both, `model.` in front is optional, and the `_orig_mod`
parts that torch.compile leaves in names are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mdinfer.errors import CheckpointError

Names = Literal["published", "fp8"]
Part = Literal["whole", "first half", "second half"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stored tensor goes: a parameter, the rows of it, and whether it is stored transposed."""

    parameter: str
    part: Part = "whole"
    transposed: bool = False


_TEXT, _BLOCK = "text_model.", "text_model.transformer.h.N."
_VISUAL, _VISION_BLOCK = (
    "vision_encoder.encoder.model.visual.",
    "vision_encoder.encoder.model.visual.blocks.N.",
)

_MODULES = {  # names of the fp8 family -> modules with a weight and a bias
    _BLOCK + "ln": "text.blocks.N.ln",
    _BLOCK + "mixer.Wqkv": "text.blocks.N.attn.qkv",
    _BLOCK + "mixer.out_proj": "text.blocks.N.attn.proj",
    _BLOCK + "mlp.fc1": "text.blocks.N.mlp.fc1",
    _BLOCK + "mlp.fc2": "text.blocks.N.mlp.fc2",
    _BLOCK + "gate": "text.blocks.N.mlp.router",
    _TEXT + "lm_head.ln": "text.post_ln",
    _TEXT + "lm_head.linear": "text.lm_head",
    _VISUAL + "patch_embed.linear": "vision.patch_emb",
    _VISION_BLOCK + "norm1": "vision.blocks.N.ln1",
    _VISION_BLOCK + "attn.qkv": "vision.blocks.N.attn.qkv",
    _VISION_BLOCK + "attn.proj": "vision.blocks.N.attn.proj",
    _VISION_BLOCK + "norm2": "vision.blocks.N.ln2",
    _VISION_BLOCK + "mlp.fc1": "vision.blocks.N.mlp.fc1",
    _VISION_BLOCK + "mlp.fc2": "vision.blocks.N.mlp.fc2",
    _VISUAL + "norm": "vision.post_ln",
    "vision_encoder.projection.mlp.fc1": "vision.proj_mlp.fc1",
    "vision_encoder.projection.mlp.fc2": "vision.proj_mlp.fc2",
    "region_model.coordinate_encoder": "region.coord_encoder",
    "region_model.coordinate_head": "region.coord_decoder",
    "region_model.size_encoder": "region.size_encoder",
    "region_model.size_head": "region.size_decoder",
    "region_model.ln": "region.ln",
}

_TAU = "text.blocks.N.attn.tau."
_PLACES: dict[Names, dict[str, Place]] = {
    "published": {
        _TAU + "wq": Place(_TAU + "wqwv", "first half"),
        _TAU + "wv": Place(_TAU + "wqwv", "second half"),
    },
    "fp8": {
        _TEXT + "transformer.embd.wte.weight": Place("text.wte"),
        _BLOCK + "tau_wq": Place(_TAU + "wqwv", "first half"),
        _BLOCK + "tau_wv": Place(_TAU + "wqwv", "second half"),
        _BLOCK + "tau_wqwv": Place(_TAU + "wqwv"),
        _BLOCK + "tau_alpha": Place(_TAU + "alpha"),
        # Experts and dense layers share parameter names; a layer has one kind, and shapes tell which.
        _BLOCK + "mlp.experts.weight": Place("text.blocks.N.mlp.fc1.weight"),
        _BLOCK + "mlp.output_experts.weight": Place("text.blocks.N.mlp.fc2.weight"),
        _BLOCK + "moe_quant.up_scale": Place("text.blocks.N.mlp.fc1.scale"),
        _BLOCK + "moe_quant.down_scale": Place("text.blocks.N.mlp.fc2.scale"),
        _VISUAL + "pos_embed": Place("vision.pos_emb"),
        "region_model.coordinate_features.weight": Place("region.coord_features", transposed=True),
        "region_model.size_features.weight": Place("region.size_features", transposed=True),
        **{f"{module}.{kind}": Place(f"{to}.{kind}") for module, to in _MODULES.items() for kind in ("weight", "bias")},
    },
}
_ROOTS: dict[Names, tuple[str, ...]] = {
    "published": ("text.", "vision.", "region."),
    "fp8": (_TEXT, "vision_encoder.", "region_model."),
}
_NUMBER = re.compile(r"(?<=\.)(0|[1-9]\d*)(?=\.)")


def detect(names: Iterable[str]) -> Names:
    """The family most of the names are of. Raises CheckpointError if none is of any."""
    plain = [_plain(name) for name in names]
    count = {family: sum(name.startswith(roots) for name in plain) for family, roots in _ROOTS.items()}
    family = max(count, key=lambda each: count[each])
    if count[family] == 0:
        found = ", ".join(plain[:3]) or "no tensors at all"
        raise CheckpointError(
            f"not the weights of Moondream 3: expected names such as model.text.wte or "
            f"text_model.transformer.embd.wte.weight, found {found}"
        )
    return family


def place(name: str, family: Names) -> Place | None:
    """Where the tensor of this name goes; None if the family has no such name.

    For "published" any name is a parameter's own, unless it is a half of tau.
    """
    plain = _plain(name)
    number = _NUMBER.search(plain)
    found = _PLACES[family].get(_NUMBER.sub("N", plain, count=1))
    if found is None:
        return Place(plain) if family == "published" else None
    if number is None:
        return found
    return Place(found.parameter.replace("N", number[0], 1), found.part, found.transposed)


def spelling(parameter: str, part: Part, family: Names, *, expert: bool = False) -> str:
    """The name a parameter, or a half of it, would have in a checkpoint, for messages.

    `expert` tells an expert weight from a dense layer's of the same parameter name.
    """
    number = _NUMBER.search(parameter)
    wanted = (_NUMBER.sub("N", parameter, count=1), part)
    fits = [name for name, each in _PLACES[family].items() if (each.parameter, each.part) == wanted]
    fits.sort(key=lambda name: ("experts" in name) is not expert)
    name = fits[0] if fits else wanted[0]
    name = f"model.{name}" if family == "published" else name
    return name.replace("N", number[0], 1) if number else name


def _plain(name: str) -> str:
    return name.replace("._orig_mod", "").removeprefix("_orig_mod.").removeprefix("model.")
