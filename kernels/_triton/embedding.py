"""Input rows of any kind in one launch: a program for a slice of a row copies it, or computes it from a value."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mdinfer.kernels._triton.dependent import wait_for_earlier
from mdinfer.kernels._triton.launch import Config, assert_dense, launch, power_of_2
from mdinfer.kernels.embedding import TokenKind, ValueEncoder

# Columns of a program by the rows of the step; not measured. A decoding step's few rows may all be values, whose
# weights (1 or 2 MB) are to be read by the whole chip: 32 programs a row. A prompt's thousands of rows are copies
# almost all, where a program should move more than 128 bytes.
CONFIGS = {
    256: Config(blocks={"BLOCK": 64, "FEATURES": 64}, warps=4),
    1 << 30: Config(blocks={"BLOCK": 256, "FEATURES": 16}, warps=4),
}

_COORD = tl.constexpr(int(TokenKind.COORD))
_SIZE = tl.constexpr(int(TokenKind.SIZE))
_IMAGE = tl.constexpr(int(TokenKind.IMAGE))
_PI = tl.constexpr(3.141592653589793)


@triton.jit
def _cos_sin(turns):
    """Cosine and sine of 2 pi `turns`, within 2e-7 of what a float32 knows of them.

    Half turns are taken off, exactly, which leaves an angle within +-pi/2, where Taylor's series are short. (The
    library's functions hold a way for any angle, which costs registers and memory in every kernel.)
    """
    halves = turns * 2
    whole = tl.floor(halves + 0.5)
    angle = (halves - whole) * _PI
    sign = 1.0 - 2.0 * (whole - 2.0 * tl.floor(whole * 0.5))
    t = angle * angle
    cos = 1 - t * (1 / 2) * (1 - t * (1 / 12) * (1 - t * (1 / 30) * (1 - t * (1 / 56) * (1 - t * (1 / 90)))))
    cos += t * t * t * t * t * t * (1 / 479001600)
    sin = 1 - t * (1 / 6) * (1 - t * (1 / 20) * (1 - t * (1 / 42) * (1 - t * (1 / 72) * (1 - t * (1 / 110)))))
    return sign * cos, sign * angle * sin


@triton.jit
def _encode(
    features_ptr, weight_ptr, bias_ptr, values_ptr, columns, D: tl.constexpr, F: tl.constexpr, NUMBERS: tl.constexpr,
    BLOCK: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """weight [cos f, sin f] + bias of one value at some columns."""
    total = tl.zeros((BLOCK, FEATURES), tl.float32)
    for start in range(0, F, FEATURES):
        at = start + tl.arange(0, FEATURES)
        turns = tl.load(values_ptr) * tl.load(features_ptr + at, mask=at < F, other=0.0)
        if NUMBERS == 2:
            turns += tl.load(values_ptr + 1) * tl.load(features_ptr + F + at, mask=at < F, other=0.0)
        cos, sin = _cos_sin(turns)
        entry = weight_ptr + columns[:, None] * (2 * F) + at[None, :]
        inside = (columns[:, None] < D) & (at[None, :] < F)
        total += tl.load(entry, mask=inside, other=0.0).to(tl.float32) * cos[None, :]
        total += tl.load(entry + F, mask=inside, other=0.0).to(tl.float32) * sin[None, :]
    return tl.sum(total, axis=1) + tl.load(bias_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["tokens_ptr", "kinds_ptr", "values_ptr", "image_rows_ptr"])
def input_kernel(
    wte_ptr, tokens_ptr, kinds_ptr, values_ptr, images_ptr, image_rows_ptr,
    coord_features_ptr, coord_weight_ptr, coord_bias_ptr, size_features_ptr, size_weight_ptr, size_bias_ptr, out_ptr,
    D: tl.constexpr, COORD_F: tl.constexpr, SIZE_F: tl.constexpr, BLOCK: tl.constexpr, FEATURES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    wait_for_earlier(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kind = tl.load(kinds_ptr + row)
    x = tl.zeros((BLOCK,), tl.float32)
    if kind == _COORD:
        x = _encode(
            coord_features_ptr, coord_weight_ptr, coord_bias_ptr, values_ptr + 2 * row, columns,
            D, COORD_F, 1, BLOCK, FEATURES,
        )  # fmt: skip
    elif kind == _SIZE:
        x = _encode(
            size_features_ptr, size_weight_ptr, size_bias_ptr, values_ptr + 2 * row, columns,
            D, SIZE_F, 2, BLOCK, FEATURES,
        )  # fmt: skip
    else:
        image = kind == _IMAGE
        token = tl.load(tokens_ptr + row)
        x = tl.load(wte_ptr + token * D + columns, mask=(columns < D) & (image == 0), other=0.0).to(tl.float32)
        if images_ptr is not None:
            at = tl.load(image_rows_ptr + row)
            pixels = tl.load(images_ptr + at * D + columns, mask=(columns < D) & image, other=0.0)
            x = tl.where(image, pixels.to(tl.float32), x)
    tl.store(out_ptr + row * D + columns, x.to(out_ptr.dtype.element_ty), mask=columns < D)


def input_embeddings(
    wte: torch.Tensor,
    tokens: torch.Tensor,
    kinds: torch.Tensor,
    values: torch.Tensor,
    encoders: tuple[ValueEncoder, ValueEncoder],
    images: torch.Tensor | None,
) -> torch.Tensor:
    T, D = len(tokens), wte.shape[1]
    out = torch.empty(T, D, dtype=wte.dtype, device=wte.device)
    rows = None if images is None else (kinds == TokenKind.IMAGE).cumsum(0) - 1
    images = None if images is None else images.contiguous()
    coord, size = encoders
    weights = (coord.features, coord.weight, coord.bias, size.features, size.weight, size.bias)
    assert_dense(wte, *weights)
    chosen = next(config for count, config in CONFIGS.items() if count >= T)
    blocks = {
        "BLOCK": min(chosen.blocks["BLOCK"], power_of_2(D)),
        "FEATURES": min(chosen.blocks["FEATURES"], power_of_2(max(coord.features.shape[1], size.features.shape[1]))),
    }
    launch(
        input_kernel,
        (T, triton.cdiv(D, blocks["BLOCK"])),
        *(wte, tokens.contiguous(), kinds.contiguous(), values.contiguous(), images, rows),
        *(*weights, out),
        D=D,
        COORD_F=coord.features.shape[1],
        SIZE_F=size.features.shape[1],
        config=Config(blocks=blocks, warps=chosen.warps),
    )
    return out
