"""Products with e4m3 weights on the kernels: few rows against float64, many against the torch body.

Tolerance 1e-6 of the RMS in float32: sums of up to 592 terms, scale and bias, each rounded to 2^-24; otherwise one
store. Weights in e4m3 are exact in any type that they are brought to.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import dispatch
from mdinfer.kernels import linear_fp8 as linear
from mdinfer.kernels._triton import linear_fp8
from mdinfer.kernels._triton.launch import recorded
from mdinfer.kernels.linear_fp8 import linear_fp8_torch
from mdinfer.kernels.quantise import FEW_ROWS, quantise_rows_torch
from tests.kernels.compare import randn, rms_ratio, store_error, to_array

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 16, 16), (3, 48, 272), (16, 128, 592), (2, 4112, 32), (17, 80, 512), (15, 16, 256)]


@pytest.fixture(autouse=True)
def several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter too, cut as on a GPU, but for weights of many rows."""
    first = next(iter(linear_fp8.CONFIGS.values()))
    monkeypatch.setattr(linear_fp8, "INTERPRETER", first)


def kept(N: int, K: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    q, scale = quantise_rows_torch(randn(N, K, seed=1, scale=K**-0.5))
    return q.to(device), scale.to(device)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_few_rows(shape: tuple[int, int, int], dtype: torch.dtype, with_bias: bool, device: torch.device) -> None:
    T, N, K = shape
    x, (weight, scale) = randn(T, K).to(device, dtype), kept(N, K, device)
    bias = randn(N, seed=2).to(device, dtype) if with_bias else None
    found = linear_fp8.few_rows(x, weight, scale, bias)
    want = to_array(x) @ (to_array(weight.float()) * to_array(scale)[:, None]).T
    if bias is not None:
        want = want + to_array(bias)
    assert (found.shape, found.dtype) == ((T, N), dtype)
    assert rms_ratio(found, want) < 1e-6 + store_error(dtype)


def test_all_values_of_e4m3_are_met(device: torch.device) -> None:
    """Rows of the unit matrix give the weights back, subnormals and the largest too, but for NaN."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    weight = values[values.isfinite()][: 15 * 16].view(15, 16).to(torch.float8_e4m3fn)
    weight = torch.cat((weight, weight[:1])).to(device)
    found = linear_fp8.few_rows(torch.eye(16, device=device), weight, torch.ones(16, device=device), None)
    assert torch.equal(found.T, weight.float())


def test_what_does_not_lie_densely(device: torch.device) -> None:
    wide, (weight, scale) = randn(5, 96).to(device), kept(32, 48, device)
    assert torch.equal(
        linear_fp8.few_rows(wide[:, 48:], weight, scale, None),
        linear_fp8.few_rows(wide[:, 48:].clone(), weight, scale, None),
    )
    with pytest.raises(AssertionError):
        linear_fp8.few_rows(wide[:, :32], weight.T, scale[:1].expand(48), None)


def test_nan_stays_in_its_row(device: torch.device) -> None:
    x, (weight, scale) = randn(4, 48).to(device), kept(32, 48, device)
    x[2, 5] = float("nan")
    found = linear_fp8.few_rows(x, weight, scale, None)
    assert found.isnan().all(dim=1).tolist() == [False, False, True, False] and not found[[0, 1, 3]].isnan().any()


def test_no_rows(device: torch.device) -> None:
    weight, scale = kept(32, 48, device)
    assert linear_fp8.few_rows(torch.empty(0, 48, device=device), weight, scale, None).shape == (0, 32)


@pytest.mark.parametrize("T", [0, 1, FEW_ROWS, FEW_ROWS + 1, 40])
def test_rows_decide_what_is_launched(T: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows go to the kernel; many are rounded in one launch and go to the library (here: the torch product)."""
    monkeypatch.setattr(dispatch, "compiled", lambda _: True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x, (weight, scale) = randn(T, 48).to(device, dtype), kept(32, 48, device)
    bias = randn(32, seed=2).to(device, dtype)
    with recorded() as launches:
        found = linear(x, weight, scale, bias)
    names = [launch.name for launch in launches]
    assert names == (["few_rows_kernel"] if 0 < T <= FEW_ROWS else ["quantise_rows_kernel"] if T else [])
    want = linear_fp8_torch(x.float(), weight, scale, bias.float())
    assert found.shape == (T, 32)
    if T:
        assert rms_ratio(found, to_array(want)) < 2e-6 + store_error(dtype)
