"""What goes where: every name, shape and type of a checkpoint checked against the parameters.

Nothing is copied here; `load.py` carries a plan out. The parameters are made from config.json, so that a
checkpoint which disagrees with its config is an error here, with the tensor's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mdinfer.checkpoint.layouts import Names, Part, Place, detect, place, spelling
from mdinfer.checkpoint.quantise import FP8, QUANTISED, int4_inputs
from mdinfer.checkpoint.tensors import Stored
from mdinfer.errors import CheckpointError
from mdinfer.kernels.int4 import INT4

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_SHOWN = 4  # names of a list in a message
_ORIGIN = "config.json (where it is silent: the published model)"
_PARTS: tuple[Part, ...] = ("whole", "first half", "second half")
_Found = dict[tuple[str, Part], tuple[Stored, Place]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """Copy `source` into `into`, a view of `parameter` with the same shape, or with as many rows of int4.

    `scale` holds the scales of a float8 source, `scale_into` takes those of a float8, int8 or int4 parameter; all
    have the shape of the weight without its last dimension, int4's two more behind. Sources are float8 where experts
    are.
    """

    parameter: str
    source: Stored
    into: Tensor
    scale: Stored | None = None
    scale_into: Tensor | None = None


def plan(tensors: Sequence[Stored], targets: Mapping[str, Tensor]) -> list[Fill]:
    """One `Fill` for every stored weight. Raises CheckpointError on the first disagreement."""
    family = detect(stored.name for stored in tensors)
    found, strangers = _sort(tensors, family, targets)
    absent = _missing(found, family, targets)
    if absent or strangers:
        said = [f"{len(absent)} tensors are missing ({_listed(absent)})"] if absent else []
        said += [f"{len(strangers)} are unexpected ({_listed(strangers)})"] if strangers else []
        raise CheckpointError(
            f"the checkpoint does not have the tensors that {_ORIGIN} asks for: {'; '.join(said)}. "
            "Check that all files are of one Moondream 3 checkpoint"
        )
    fills = []
    for (parameter, _), (stored, where) in found.items():
        if not _is_scale(parameter):
            scale = found.get((_scale_of(parameter), "whole"))
            fills.append(_fill(stored, where, scale[0] if scale else None, family, targets))
    return fills


def _sort(tensors: Sequence[Stored], family: Names, targets: Mapping[str, Tensor]) -> tuple[_Found, list[str]]:
    """Stored tensors by the place they go to, and the names of those that go nowhere."""
    found: _Found = {}
    strangers = []
    for stored in tensors:
        where = place(stored.name, family)
        weight = targets.get(_weight_of(where.parameter)) if where else None
        if where is None or weight is None or (_is_scale(where.parameter) and weight.ndim != 3):
            strangers.append(stored.name)
            continue
        for part in _PARTS if where.part == "whole" else ("whole", where.part):
            if other := found.get((where.parameter, part)):
                raise CheckpointError(
                    f"tensors {other[0].name} and {stored.name} are one parameter, {where.parameter}: "
                    "expected one of them; the file mixes two checkpoints"
                )
        found[where.parameter, where.part] = (stored, where)
    return found, strangers


def _missing(found: _Found, family: Names, targets: Mapping[str, Tensor]) -> list[str]:
    """Names, as the checkpoint would spell them, of what no stored tensor fills."""
    absent = []
    for parameter, target in targets.items():
        if _is_scale(parameter) or (parameter, "whole") in found:
            continue
        for part in _PARTS[1:] if parameter.endswith(".tau.wqwv") else _PARTS[:1]:
            if (parameter, part) not in found:
                absent.append(spelling(parameter, part, family, expert=target.ndim == 3))
    return absent


def _fill(stored: Stored, where: Place, scale: Stored | None, family: Names, targets: Mapping[str, Tensor]) -> Fill:
    target = targets[where.parameter]
    into = target.T if where.transposed else target
    if where.part != "whole":
        half = target.shape[0] // 2
        into = target[:half] if where.part == "first half" else target[half:]
    inputs = int4_inputs(where.parameter, targets) if target.dtype is INT4 else into.shape[-1]
    _check_shape(stored, (*into.shape[:-1], inputs))
    scale_into = targets.get(_scale_of(where.parameter)) if target.dtype in QUANTISED else None
    assert target.dtype in _FLOATS or scale_into is not None, f"{where.parameter} is {target.dtype}"
    if stored.dtype is FP8 and target.ndim == 3:
        if scale is None:
            name = spelling(_scale_of(where.parameter), "whole", family)
            raise CheckpointError(f"tensor {stored.name} is float8 without its scales: expected {name} beside it")
        _check_shape(scale, tuple(target.shape[:-1]))
        _check_float(scale)
    else:
        _check_float(stored)
        if scale is not None:
            raise CheckpointError(
                f"tensor {scale.name} has scales for {stored.name}: expected float8_e4m3fn there, "
                f"found {_dtype(stored)}"
            )
    return Fill(parameter=where.parameter, source=stored, into=into, scale=scale, scale_into=scale_into)


def _check_shape(stored: Stored, expected: tuple[int, ...]) -> None:
    if stored.shape != expected:
        raise CheckpointError(
            f"tensor {stored.name} has shape {stored.shape}, expected {expected} from {_ORIGIN}: weights and "
            "config.json are not of one model"
        )


def _check_float(stored: Stored) -> None:
    if stored.dtype not in _FLOATS:
        raise CheckpointError(f"tensor {stored.name} is {_dtype(stored)}, expected float32, bfloat16 or float16")


def _dtype(stored: Stored) -> str:
    return str(stored.dtype).removeprefix("torch.")


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _is_scale(parameter: str) -> bool:
    return parameter.endswith(".scale")


def _weight_of(parameter: str) -> str:
    """The weight a scale belongs to; any other parameter itself."""
    return parameter.removesuffix("scale") + "weight" if _is_scale(parameter) else parameter


def _scale_of(parameter: str) -> str:
    return parameter.removesuffix("weight") + "scale"
