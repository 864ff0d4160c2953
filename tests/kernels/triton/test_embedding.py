"""Input rows of every kind: copies exactly, encoded values against float64.

Tolerance: angles of up to 60 turns are rounded to 2^-24 of themselves before whole turns are taken off, 60 * 2 pi *
2^-24 = 2e-5 of features of about 0.7; in other dtypes the store's rounding is added.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mdinfer.kernels import TokenKind, ValueEncoder
from mdinfer.kernels._triton import embedding
from tests.kernels.compare import randn, rms_ratio, store_error, to_array

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
COORD, SIZE, TEXT, IMAGE = TokenKind.COORD, TokenKind.SIZE, TokenKind.TEXT, TokenKind.IMAGE


def make_encoders(
    D: int, coord: int, size: int, device: torch.device, dtype: torch.dtype
) -> tuple[ValueEncoder, ValueEncoder]:
    first, second = (
        ValueEncoder(
            features=randn(n, F, seed=n, scale=10.0).to(device),
            weight=randn(D, 2 * F, seed=2 + n, scale=F**-0.5).to(device, dtype),
            bias=randn(D, seed=4 + n).to(device, dtype),
        )
        for n, F in ((1, coord), (2, size))
    )
    return first, second


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("D", "coord", "size"), [(128, 16, 32), (2048, 128, 256), (66, 5, 70)], ids=str)
@pytest.mark.parametrize(
    "kinds",
    [[TEXT], [COORD], [SIZE], [IMAGE, SIZE, TEXT, COORD, IMAGE, IMAGE, COORD]],
    ids=["text", "coord", "size", "mixed"],
)
def test_against_the_twin(
    kinds: list[TokenKind], D: int, coord: int, size: int, dtype: torch.dtype, device: torch.device
) -> None:
    T, count = len(kinds), kinds.count(IMAGE)
    table, images = randn(20, D).to(device, dtype), randn(count, D, seed=9).to(device, dtype)
    tokens = torch.arange(T, device=device) * 7 % 20
    values = torch.rand(T, 2, generator=torch.Generator().manual_seed(0)).to(device)
    encoders = make_encoders(D, coord, size, device, dtype)
    found = embedding.input_embeddings(
        table, tokens, torch.tensor(kinds, device=device), values, encoders, images if count else None
    )
    assert found.shape == (T, D)
    assert found.dtype == dtype
    for i, kind in enumerate(kinds):
        if kind == TEXT:
            assert torch.equal(found[i], table[tokens[i]])
        elif kind == IMAGE:
            assert torch.equal(found[i], images[kinds[:i].count(IMAGE)])
        else:
            encoder = encoders[kind == SIZE]
            angle = 2 * np.pi * (to_array(values[i, : len(encoder.features)]) @ to_array(encoder.features))
            features = np.concatenate((np.cos(angle), np.sin(angle)))
            want = to_array(encoder.weight) @ features + to_array(encoder.bias)
            assert rms_ratio(found[i], want) < 3e-5 + store_error(dtype)


def test_whole_and_half_turns(device: torch.device) -> None:
    """Angles at the ends of what is left of a turn: cosines in the first column, sines in the second."""
    turns = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, -0.25, -0.5, 2.5, 17.125, -3.0])
    encoder = ValueEncoder(
        features=torch.ones(1, 1, device=device),
        weight=torch.eye(2, device=device),
        bias=torch.zeros(2, device=device),
    )
    other = ValueEncoder(features=torch.ones(2, 1, device=device), weight=encoder.weight, bias=encoder.bias)
    found = embedding.input_embeddings(
        torch.zeros(1, 2, device=device),
        torch.zeros(len(turns), dtype=torch.int64, device=device),
        torch.full((len(turns),), int(COORD), device=device),
        torch.stack((turns, turns), dim=1).to(device),
        (encoder, other),
        None,
    )
    angle = 2 * np.pi * turns.double().numpy()
    assert np.abs(to_array(found) - np.stack((np.cos(angle), np.sin(angle)), axis=1)).max() < 4e-7


def test_many_rows(device: torch.device) -> None:
    """More than a decoding step has, so that a program takes more columns."""
    T, D = 300, 128
    kinds = [TEXT, *[IMAGE] * 250, *[TEXT] * 46, COORD, COORD, SIZE]
    encoders = make_encoders(D, 16, 32, device, torch.float32)
    table, images = randn(20, D).to(device), randn(250, D, seed=9).to(device)
    tokens = torch.arange(T, device=device) % 20
    args = torch.rand(T, 2, device=device), encoders
    found = embedding.input_embeddings(table, tokens, torch.tensor(kinds, device=device), *args, images)
    few = embedding.input_embeddings(
        table, tokens[-4:], torch.tensor(kinds[-4:], device=device), args[0][-4:], encoders, None
    )
    assert torch.equal(found[1:251], images)
    assert torch.equal(found[251:297], table[tokens[251:297]])
    assert (found[-4:] - few).abs().max() < 1e-5


def test_a_value_that_is_no_number_stays_in_its_row(device: torch.device) -> None:
    encoders = make_encoders(64, 16, 32, device, torch.float32)
    values = torch.tensor([[0.5, 0.0], [float("nan"), 0.0], [0.5, float("nan")], [float("nan"), 0.0]], device=device)
    found = embedding.input_embeddings(
        randn(20, 64).to(device),
        torch.zeros(4, dtype=torch.int64, device=device),
        torch.tensor([COORD, COORD, SIZE, TEXT], device=device),
        values,
        encoders,
        None,
    )
    assert found.isnan().all(dim=1).tolist() == found.isnan().any(dim=1).tolist() == [False, True, True, False]


def test_no_rows(device: torch.device) -> None:
    encoders = make_encoders(64, 16, 32, device, torch.float32)
    none = torch.empty(0, dtype=torch.int64, device=device)
    found = embedding.input_embeddings(
        randn(20, 64).to(device), none, none, torch.empty(0, 2, device=device), encoders, None
    )
    assert found.shape == (0, 64)
