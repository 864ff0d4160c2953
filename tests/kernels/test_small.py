"""LayerNorm, input rows and Fourier features: small operations against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdinfer.kernels import (
    RegionHeads,
    TokenKind,
    ValueEncoder,
    decode_coordinate,
    decode_size,
    encode_values,
    fourier_features,
    input_embeddings,
    layer_norm,
    region_values,
)
from tests.kernels.compare import randn, rms_ratio, to_array


@pytest.mark.parametrize("variance", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("shape", [(1, 8), (5, 144), (2, 3, 64)], ids=str)
def test_layer_norm(shape: tuple[int, ...], variance: float) -> None:
    """1e-6 of the RMS where mean and deviation are of one size; an offset of 1 costs 1/sqrt(variance) of that."""
    x = randn(*shape, scale=variance**0.5) + 1
    weight, bias = randn(shape[-1], seed=1), randn(shape[-1], seed=2)
    rows = to_array(x).reshape(-1, shape[-1])
    want = np.empty_like(rows)
    for i, row in enumerate(rows):
        mean = sum(row) / len(row)
        spread = sum((v - mean) ** 2 for v in row) / len(row)
        want[i] = [
            (v - mean) / math.sqrt(spread + 1e-5) * w + b
            for v, w, b in zip(row, weight.tolist(), bias.tolist(), strict=True)
        ]
    tolerance = 1e-6 / math.sqrt(variance + 1e-5)
    assert rms_ratio(layer_norm(x, weight, bias), want.reshape(shape)) < tolerance


def test_layer_norm_refuses_another_width() -> None:
    with pytest.raises(AssertionError):
        layer_norm(randn(2, 8), randn(4), randn(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_input_rows_by_kind(dtype: torch.dtype) -> None:
    D = 6
    table, tokens, images = randn(20, D).to(dtype), torch.tensor([3, 0, 19, 3, 7, 0]), randn(2, D, seed=1)
    coord, size = (
        ValueEncoder(
            features=randn(n, 4, seed=n), weight=randn(D, 8, seed=2 + n).to(dtype), bias=randn(D, seed=4 + n).to(dtype)
        )
        for n in (1, 2)
    )
    kinds = torch.tensor([0, 3, 2, 0, 1, 3])
    values = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    found = input_embeddings(table, tokens, kinds, values, (coord, size), images)
    assert found.dtype == dtype
    rows = images.to(dtype)
    number, pair = encode_values(values[4:5, :1], coord)[0], encode_values(values[2:3], size)[0]
    assert torch.equal(found, torch.stack([table[3], rows[0], pair, table[3], number, rows[1]]))
    assert torch.equal(input_embeddings(table, tokens), table[tokens])


@pytest.mark.parametrize("n", [1, 2])
def test_a_value_is_encoded_by_its_features(n: int) -> None:
    encoder = ValueEncoder(features=randn(n, 8, seed=1), weight=randn(6, 16, seed=2), bias=randn(6, seed=3))
    values = torch.rand(5, n, generator=torch.Generator().manual_seed(0))
    angle = 2 * np.pi * to_array(values) @ to_array(encoder.features)
    want = np.concatenate((np.cos(angle), np.sin(angle)), axis=1) @ to_array(encoder.weight).T + to_array(encoder.bias)
    assert rms_ratio(encode_values(values, encoder), want) < 1e-5


def test_region_values_by_kind() -> None:
    """Weights of one column for each bin, so that the likeliest bin is the hidden state's largest entry."""
    D, bins = 8, 4
    sides = torch.eye(D)
    heads = RegionHeads(
        norm_weight=torch.ones(D),
        norm_bias=torch.zeros(D),
        coord_weight=sides[:bins],
        coord_bias=torch.zeros(bins),
        size_weight=sides,
        size_bias=torch.zeros(2 * bins),
    )
    hidden = torch.zeros(5, D)
    hidden[0, 2], hidden[1, 1], hidden[1, 7], hidden[2, 3] = 9, 9, 9, 9
    kinds = torch.tensor([TokenKind.COORD, TokenKind.SIZE, TokenKind.TEXT, TokenKind.COORD, TokenKind.IMAGE])
    found = region_values(hidden, kinds, heads)
    want = [[0.5, 0.0], [2 ** (10 / 3 - 10), 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    for row, expected in zip(found.tolist(), want, strict=True):
        assert row == pytest.approx(expected, rel=1e-6)


def test_token_kinds_are_pinned() -> None:
    """Decode tables, prompts and device code share these numbers."""
    assert [(kind.name, kind.value) for kind in TokenKind] == [("TEXT", 0), ("COORD", 1), ("SIZE", 2), ("IMAGE", 3)]


@pytest.mark.parametrize(("n", "F"), [(1, 16), (2, 32)])
def test_fourier_features_are_cosines_then_sines(n: int, F: int) -> None:
    """An angle of up to 2 pi 30 is rounded to 2^-24 of itself: 1e-5 absolute, of values of about 0.7."""
    values, weight = torch.rand(9, n, generator=torch.Generator().manual_seed(0)), randn(n, F, scale=10)
    want = np.empty((9, 2 * F))
    for r in range(9):
        for i in range(F):
            angle = 2 * math.pi * sum(values[r, j].item() * weight[j, i].item() for j in range(n))
            want[r, i], want[r, F + i] = math.cos(angle), math.sin(angle)
    found = fourier_features(values, weight)
    assert found.dtype == torch.float32
    assert rms_ratio(found, want) < 3e-5


def test_bins_to_numbers() -> None:
    """A coordinate is bin / bins, a size 2^(10 bin / (bins - 1) - 10); a tie goes to the lower bin."""
    logits = torch.zeros(3, 8)
    logits[0, 7], logits[1, 2], logits[1, 5] = 1, 1, 1
    assert decode_coordinate(logits).tolist() == [7 / 8, 2 / 8, 0.0]
    sizes = decode_size(torch.stack((logits, logits.flip(1)), dim=1)).tolist()
    want = [[1.0, 2**-10], [2 ** (20 / 7 - 10), 2 ** (20 / 7 - 10)], [2**-10, 2**-10]]
    for found, expected in zip(sizes, want, strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
