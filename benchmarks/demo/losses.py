"""What a batch costs: language, coordinates, sizes, router balance, and the training-only cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from benchmarks.demo.batches import Batch
from benchmarks.demo.forward import (
    CellHeads,
    Places,
    decode,
    embed,
    gaussian_loss,
    row_mask,
    see,
    token_logits,
    value_logits,
)
from mdinfer.kernels import TokenKind
from mdinfer.model.moondream import Moondream

_SPREAD = {TokenKind.COORD: 1.5, TokenKind.SIZE: 2.5}  # bins: targets are Gaussians, so that near misses cost less
_INPUT_NOISE = 0.006  # on coordinates and sizes fed back: at inference they are the model's own, slightly off
WEIGHTS = {"language": 1.5, "coordinates": 1.0, "sizes": 1.0, "balance": 0.01, "cells": 3.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """total, with its graph; the parts, detached; right is the share of predicted tokens that are likeliest."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


def batch_losses(model: Moondream, heads: CellHeads, batch: Batch, device: torch.device, seed: int) -> Losses:
    rows, pictures = batch.rows, batch.pictures

    def on(array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    cells = on(pictures.cells)
    with torch.autocast(device.type, torch.bfloat16):
        images = see(model, on(pictures.crops), on(pictures.tiles), pictures.tilings)
        cell_loss = heads(images, cells, on(pictures.grounds))
    if rows is None:
        return Losses(total=cell_loss, parts={"cells": cell_loss.detach()})
    noise = np.random.default_rng(seed).normal(0, _INPUT_NOISE, rows.values.shape).astype(np.float32)
    values = on(np.clip(rows.values + noise, 0, 1))
    position = on(rows.position)
    with torch.autocast(device.type, torch.bfloat16):
        images = images[: int((rows.kinds == TokenKind.IMAGE).sum()) // images.shape[1]]
        x = embed(model, on(rows.tokens), on(rows.kinds), values, images)
        mask = row_mask(on(rows.group), on(rows.segment), position, on(rows.visible))
        hidden, balance = decode(model, x, Places(position, model.config.text.head_dim), mask)
        target, kind = rows.target.ravel(), rows.value_kind.ravel()
        flat = hidden.flatten(0, 1)
        at = np.flatnonzero(target >= 0)
        logits = token_logits(model, flat[on(at)]).float()
    wanted, weight = on(target[at]), on(rows.weight.ravel()[at])
    language = (F.cross_entropy(logits, wanted, reduction="none") * weight).sum() / weight.sum()
    truth = rows.target_value.reshape(-1, 2)
    parts = {
        "language": language,
        "coordinates": _value_loss(model, flat, on(np.flatnonzero(kind == TokenKind.COORD)), truth, TokenKind.COORD),
        "sizes": _value_loss(model, flat, on(np.flatnonzero(kind == TokenKind.SIZE)), truth, TokenKind.SIZE),
        "balance": balance,
        "cells": cell_loss,
    }
    total = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
    right = (logits.detach().argmax(-1) == wanted).float().mean()
    return Losses(total=total, parts={**{n: p.detach() for n, p in parts.items()}, "right": right})


def _value_loss(
    model: Moondream, flat: torch.Tensor, at: torch.Tensor, truth: npt.NDArray[np.float32], kind: TokenKind
) -> torch.Tensor:
    """Cross entropy against Gaussians around the true bins (of coordinates, or of widths and heights)."""
    if len(at) == 0:
        return flat.new_zeros(())
    values = torch.from_numpy(truth).to(at.device)[at]
    with torch.autocast(at.device.type, torch.bfloat16):
        logits = value_logits(model, flat[at], kind).float()
        if kind == TokenKind.COORD:
            bins = values[:, :1] * logits.shape[-1]
        else:
            bins = (torch.log2(values.clamp(min=2**-10)) + 10) / 10 * (logits.shape[-1] - 1)
    return gaussian_loss(logits, bins, _SPREAD[kind])
