"""Which precision experts are kept in: the option, the checkpoint, the memory of a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdinfer import EngineConfig, loading
from mdinfer.config import ModelConfig
from mdinfer.errors import ConfigError
from mdinfer.precision import Choice, Experts, chosen_experts, described, expert_dtype
from tests.golden_data import load_engine

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NEEDED: dict[Experts, int] = {"bf16": 20 << 30, "fp8": 12 << 30, "int4": 9 << 30}


@pytest.mark.parametrize(
    ("own", "free", "experts"),
    [
        ("bf16", 20 << 30, "bf16"),
        ("bf16", (20 << 30) - 1, "fp8"),
        ("bf16", (12 << 30) - 1, "int4"),
        ("bf16", 1, "int4"),
        ("fp8", 80 << 30, "fp8"),
        ("fp8", 11 << 30, "int4"),
        ("int4", 1, "int4"),
    ],
)
def test_the_first_that_fits(own: Experts, free: int, experts: Experts) -> None:
    choice = chosen_experts(own, NEEDED, free)
    assert choice.experts == experts
    assert bool(choice.why) == (experts != own)


def test_what_is_said_of_a_choice() -> None:
    assert chosen_experts("bf16", NEEDED, 11 << 30).why == (
        "of 11.0 GiB free, with a least of cache, would take: bf16 20.0 GiB, fp8 12.0 GiB"
    )
    assert chosen_experts("bf16", NEEDED, 1 << 30).why.endswith("bf16 20.0 GiB, fp8 12.0 GiB, int4 9.0 GiB")


def test_types() -> None:
    assert [expert_dtype(each, torch.float32) for each in NEEDED] == [torch.float32, torch.float8_e4m3fn, torch.uint8]
    assert expert_dtype("int8", torch.float32) == torch.int8 and described(torch.int8) == "int8"
    assert described(torch.uint8) == "int4 in groups of 128"
    assert described(torch.float8_e4m3fn) == "float8_e4m3fn"


def experts_of(memory: float, own: Experts, device: torch.device = GPU, **options: Any) -> Choice:
    """Of the published model; memory in 10^9 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "available_bytes", lambda device: int(memory * 1e9))
        return loading._experts(ModelConfig(), own, EngineConfig(**options), device)


@pytest.mark.parametrize(("memory", "experts"), [(80, "bf16"), (24, "bf16"), (16, "fp8"), (12, "int4"), (6, "int4")])
def test_cards(memory: float, experts: Experts) -> None:
    """With 4% of each taken by the driver."""
    assert experts_of(0.96 * memory, "bf16").experts == experts
    assert experts_of(0.96 * memory, "fp8").experts == ("fp8" if experts == "bf16" else experts)


def test_a_cache_of_a_given_size_counts() -> None:
    assert experts_of(24, "bf16", kv_memory="8GiB").experts == "fp8"
    assert experts_of(13, "bf16", max_context=1024, kv_dtype="fp8").experts == "fp8"
    assert experts_of(13, "bf16").experts == "int4"


def test_an_engine_says_what_was_chosen_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = chosen_experts("bf16", NEEDED, 11 << 30)
    monkeypatch.setattr(loading, "_experts", lambda *args: choice)
    with load_engine("tiny-a") as engine:
        assert f", float32, experts int4 in groups of 128 ({choice.why})\n" in engine.description()


@pytest.mark.parametrize("experts", ["bf16", "fp8", "int4"])
def test_the_option_decides(experts: Experts) -> None:
    for memory, device in ((1, GPU), (80, GPU), (80, CPU)):
        for own in ("bf16", "fp8"):
            assert experts_of(memory, own, device, experts=experts) == Choice(experts=experts)


@pytest.mark.parametrize("own", ["bf16", "fp8"])
def test_a_cpu_computes_unquantised_what_fits(own: Experts) -> None:
    """The published model takes 18.6, 10.5 and 6.7 of 10^9 bytes, a sequence's cache 0.8, the work 1.1."""
    assert experts_of(24, own, CPU) == Choice(experts="bf16")
    for memory, experts in ((16, "int8"), (11, "int4"), (1, "int4")):
        choice = experts_of(memory, own, CPU)
        assert choice.experts == experts and "would take: bf16 19." in choice.why


def test_int8_is_for_a_cpu() -> None:
    assert experts_of(1, "bf16", CPU, experts="int8") == Choice(experts="int8")
    with pytest.raises(ConfigError, match='experts is "int8", which only a CPU computes: use "fp8" or "int4" on cuda'):
        experts_of(80, "bf16", GPU, experts="int8")
