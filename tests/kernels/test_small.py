"""LayerNorm, input rows and Fourier features: small operations against plain loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mdinfer.kernels import TokenKind, decode_coordinate, decode_size, fourier_features, input_embeddings, layer_norm
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
def test_input_rows_are_tokens_except_where_replaced(dtype: torch.dtype) -> None:
    table, tokens, rows = randn(20, 6).to(dtype), torch.tensor([3, 0, 19, 3, 7]), randn(2, 6, seed=1)
    found = input_embeddings(table, tokens, torch.tensor([4, 1]), rows)
    want = [table[3], rows[1].to(dtype), table[19], table[3], rows[0].to(dtype)]
    assert found.dtype == dtype
    assert torch.equal(found, torch.stack(want))
    assert torch.equal(input_embeddings(table, tokens), table[tokens])


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
