"""A model whose weights are put into what a CPU multiplies best computes what it did before."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.plain import plain_weights
from mdinfer.checkpoint import random_weights
from mdinfer.checkpoint.plan import Fill
from mdinfer.config import ModelConfig
from mdinfer.errors import CheckpointError, ConfigError
from mdinfer.kernels import dispatch
from mdinfer.kernels.packed import can_pack
from mdinfer.kernels.sample import CONTROL_IDS
from mdinfer.model.moondream import Moondream
from tests.checkpoint.models import tiny_config
from tests.golden_data import checkpoint, load_engine
from tests.model.test_layouts import first_logits

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
packs = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.bfloat16), reason="this torch or CPU has no such product"
)
NAME = "text.blocks.2.mlp.fc1.weight"


def built(dtype: torch.dtype = torch.bfloat16, experts: torch.dtype | None = None) -> Moondream:
    config = tiny_config()
    config = replace(config, text=replace(config.text, vocab_size=64))
    model = Moondream(config, dtype=dtype, expert_dtype=experts)
    random_weights(model.weights())
    return model


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@packs
def test_a_model_in_bfloat16() -> None:
    """Sums in another order: a rounding of 2^-9 goes the other way here and there, through a few layers."""
    model, laid_out = built(), built()
    before = laid_out.weights()
    laid_out.lay_out()
    assert all(before[name].untyped_storage().nbytes() == 0 for name in (NAME, "text.lm_head.weight"))
    assert laid_out.weights()[NAME].is_meta and laid_out.weights()["text.lm_head.weight"].is_mkldnn
    assert laid_out.weight_bytes == model.weight_bytes
    expected = first_logits(model)
    assert off(first_logits(laid_out), expected) < 2e-2
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    for first in (CONTROL_IDS, 3):
        assert off(laid_out.text.logits(hidden, first), model.text.logits(hidden)[:, :first]) < 2.0**-7
    side = model.config.vision.crop_size
    crops = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert off(laid_out.vision(crops, [(1, 1)], 2)[0], model.vision(crops, [(1, 1)], 2)[0]) < 2e-2


@packs
def test_experts_in_fp8_are_widened_where_that_is_asked_for() -> None:
    """A product was rounded before its scale and after it; the weight times its scale is, and the product once."""
    model, narrow, wide = built(experts=FP8), built(experts=FP8), built(experts=FP8)
    narrow.lay_out(widen=False)
    wide.lay_out(widen=True)
    assert not narrow.weights()[NAME].is_meta and wide.weights()[NAME].is_meta
    experts = sum(weight.numel() for weight in model.weights().values() if weight.dtype == FP8)
    assert narrow.weight_bytes == model.weight_bytes == wide.weight_bytes - experts
    expected = first_logits(model)
    assert off(first_logits(narrow), expected) < 2e-2 and off(first_logits(wide), expected) < 2e-2


def test_float32_and_kernels_take_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, experts in ((torch.float32, None), (torch.float32, FP8)):
        model = built(dtype, experts)
        before, expected = model.weights(), first_logits(model)
        model.lay_out()
        assert all(weight.data_ptr() == before[name].data_ptr() for name, weight in model.weights().items())
        assert torch.equal(first_logits(model), expected)
    model = built()
    monkeypatch.setattr(dispatch, "compiled", lambda x: True)
    model.lay_out()
    assert not any(weight.is_meta or weight.is_mkldnn for weight in model.weights().values())


@packs
@pytest.mark.parametrize("kv_memory", ["auto", "64MiB"])
def test_an_engine_widens_experts_in_fp8_where_memory_allows(kv_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, fp8's again, 1 GiB, and a cache for the longest sequence: a quarter of what is left, or as told."""
    model = Moondream(ModelConfig.from_file(checkpoint("tiny-a") / "config.json"), dtype=BF16, expert_dtype=FP8)
    more = sum(weight.numel() for weight in model.weights().values() if weight.dtype == FP8)
    text = model.config.text
    cache = 4 * 2 * 2 * text.n_layers * text.dim * text.max_context if kv_memory == "auto" else 64 << 20
    needed = model.weight_bytes + more + cache + (1 << 30)
    for free, held in ((needed, " held as bfloat16"), (needed - 1, "")):
        monkeypatch.setattr("mdinfer.loading.available_bytes", lambda device, free=free: free)
        with load_engine("tiny-a", experts="fp8", dtype="bfloat16", kv_memory=kv_memory) as engine:
            assert f"bfloat16, experts float8_e4m3fn{held}\n" in engine.description()
            found = [engine.query(None, "What is it?", temperature=0, max_tokens=12).token_ids for _ in range(2)]
            assert found[0] and found[0] == found[1]


@packs
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is resident")
def test_memory_of_a_packed_model_is_free_again() -> None:
    """Its weights are many pieces, which the C library keeps for itself. In a process that has no other models."""
    program = """
import os
import torch
from pathlib import Path
from mdinfer.memory import available_bytes
from mdinfer.model.layers import Linear

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.empty(31 << 20, dtype=torch.uint8).fill_(1)
before = resident()
layers = [Linear(1024, 1024, dtype=torch.bfloat16, device="cpu") for _ in range(100)]
for layer in layers:
    layer.weight.zero_()
    layer.lay_out()
held = resident()
del layer, layers
available_bytes(torch.device("cpu"))
print(held - before, resident() - before)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    held, after = map(int, ran.stdout.split())
    assert held > 190 << 20 and after < held / 4


@packs
def test_benchmarks_find_what_was_packed() -> None:
    model, laid_out = built(), built()
    laid_out.lay_out()
    found = plain_weights(laid_out)
    assert found.keys() == model.weights().keys()
    assert all(torch.equal(found[name], weight) for name, weight in model.weights().items())


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("mdinfer-lay-out")]


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ConfigError, "cannot be allocated"),
        (MemoryError(), ConfigError, "cannot be allocated"),
        (RuntimeError("could not create a primitive"), RuntimeError, "could not create a primitive"),
    ],
    ids=str,
)
def test_a_fault_of_laying_out_is_told_and_ends_it(
    fault: Exception, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Moondream, names: list[str], *, widen: bool) -> None:
        raise fault

    monkeypatch.setattr(Moondream, "lay_out", fail)
    with pytest.raises(error, match=said):
        load_engine("tiny-a", dtype="bfloat16")
    assert not threads()


def test_a_faulty_checkpoint_ends_laying_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to be laid out is left: the fault is told as soon as what has begun is done."""
    begun, go = [], threading.Event()

    def lay_out(model: Moondream, names: list[str], *, widen: bool) -> None:
        begun.extend(names)
        go.wait(30)

    def carry_out(fills: list[Fill], *, progress: bool, filled: Callable[[str], None]) -> None:
        for fill in fills:
            filled(fill.parameter)
        threading.Timer(0.2, go.set).start()
        raise CheckpointError("tensor holds NaN")

    monkeypatch.setattr(Moondream, "lay_out", lay_out)
    monkeypatch.setattr("mdinfer.checkpoint.source.carry_out", carry_out)
    with pytest.raises(CheckpointError, match="holds NaN"):
        load_engine("tiny-a", dtype="bfloat16")
    assert len(begun) == 1 and not threads()
