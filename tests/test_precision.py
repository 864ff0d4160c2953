"""Which precision experts and linears are kept in: the options, the checkpoint, the memory of a GPU and what it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdinfer import ConfigError, EngineConfig, loading
from mdinfer.config import ModelConfig
from mdinfer.precision import (
    Choice,
    Experts,
    Kept,
    Linears,
    candidates,
    chosen,
    described,
    expert_dtype,
    linear_dtype,
    smaller_experts,
)
from tests.golden_data import load_engine

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NEEDED: dict[Kept, int] = {
    ("bf16", "bf16"): 20 << 30,
    ("bf16", "fp8"): 19 << 30,
    ("fp8", "bf16"): 12 << 30,
    ("fp8", "fp8"): 11 << 30,
    ("int4", "bf16"): 9 << 30,
    ("int4", "fp8"): 8 << 30,
}


def first_that_fits(own: Experts, free: int, *, fp8: bool = True) -> Choice:
    return chosen(candidates(smaller_experts(own, on_cpu=False), None, fp8=fp8), NEEDED, free)


@pytest.mark.parametrize(
    ("own", "free", "kept"),
    [
        ("bf16", 20 << 30, ("bf16", "bf16")),
        ("bf16", (20 << 30) - 1, ("fp8", "bf16")),
        ("bf16", (12 << 30) - 1, ("fp8", "fp8")),
        ("bf16", (11 << 30) - 1, ("int4", "bf16")),
        ("bf16", 1, ("int4", "fp8")),
        ("fp8", 80 << 30, ("fp8", "bf16")),
        ("fp8", 11 << 30, ("fp8", "fp8")),
        ("int4", 1, ("int4", "fp8")),
    ],
)
def test_the_first_that_fits(own: Experts, free: int, kept: Kept) -> None:
    """Experts give way before linears do; and linears before experts are int4."""
    choice = first_that_fits(own, free)
    assert (choice.experts, choice.linears) == kept
    assert bool(choice.why) == (kept != (own, "bf16"))


def test_linears_stay_where_fp8_is_not_to_be_had() -> None:
    found = [first_that_fits("bf16", free << 30, fp8=False) for free in (20, 19, 11, 1)]
    assert [choice.experts for choice in found] == ["bf16", "fp8", "int4", "int4"]
    assert {choice.linears for choice in found} == {"bf16"}


def test_one_option_leaves_the_other_open() -> None:
    both: list[Linears] = ["bf16", "fp8"]
    for experts in ("bf16", "fp8", "int4"):
        assert candidates((experts,), None, fp8=True) == [(experts, linears) for linears in both]
    for linears in both:
        assert candidates(("fp8", "int4"), linears, fp8=True) == [("fp8", linears), ("int4", linears)]
        assert candidates(("bf16",), linears, fp8=True) == [("bf16", linears)]


def test_what_is_said_of_a_choice() -> None:
    assert first_that_fits("bf16", 11 << 30).why == (
        "of 11.0 GiB free, with a least of cache, would take: bf16 20.0 GiB, fp8 12.0 GiB"
    )
    assert first_that_fits("bf16", 1 << 30).why.endswith(
        "fp8 12.0 GiB, fp8 with linears fp8 11.0 GiB, int4 9.0 GiB, int4 with linears fp8 8.0 GiB"
    )


def test_types() -> None:
    names: tuple[Experts, ...] = ("bf16", "fp8", "int8", "int4")
    types = [torch.float32, torch.float8_e4m3fn, torch.int8, torch.uint8]
    assert [expert_dtype(each, torch.float32) for each in names] == types
    rates: tuple[Linears, ...] = ("bf16", "fp8")
    assert [linear_dtype(each, torch.float32) for each in rates] == [torch.float32, torch.float8_e4m3fn]
    assert described(torch.empty(1, dtype=torch.int8)) == "int8"
    assert described(torch.empty(1, dtype=torch.uint8)) == "int4 in groups of 128"
    assert described(torch.empty(1, dtype=torch.float8_e4m3fn)) == "float8_e4m3fn"
    assert described(torch.empty(1, dtype=torch.float8_e4m3fn, device="meta")) == "float8_e4m3fn held as bfloat16"


def kept_of(
    memory: float,
    own: Experts,
    device: torch.device = GPU,
    capability: tuple[int, int] = (9, 0),
    **options: Any,
) -> Choice:
    """Of the published model; memory in 10^9 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "available_bytes", lambda device: int(memory * 1e9))
        patch.setattr(loading, "_capability", lambda device: capability)
        return loading._kept(ModelConfig(), own, EngineConfig(**options), device)


@pytest.mark.parametrize(("memory", "experts"), [(80, "bf16"), (24, "bf16"), (16, "fp8"), (12, "int4"), (6, "int4")])
@pytest.mark.parametrize("capability", [(8, 6), (9, 0)], ids=str)
def test_cards(memory: float, experts: Experts, capability: tuple[int, int]) -> None:
    """With 4% of each taken by the driver. Linears are fp8 where nothing else fits, on a chip that has it."""
    choice = kept_of(0.96 * memory, "bf16", capability=capability)
    assert choice.experts == experts
    assert choice.linears == ("fp8" if memory == 6 and capability == (9, 0) else "bf16")
    own = kept_of(0.96 * memory, "fp8", capability=capability)
    assert own.experts == ("fp8" if experts == "bf16" else experts)


def test_a_cache_of_a_given_size_counts() -> None:
    assert kept_of(24, "bf16", kv_memory="8GiB").experts == "fp8"
    assert kept_of(13, "bf16", max_context=1024, kv_dtype="fp8").experts == "fp8"
    assert kept_of(13, "bf16").linears == "fp8"
    assert kept_of(13, "bf16", capability=(8, 6)) != kept_of(13, "bf16")
    assert kept_of(13, "bf16", capability=(8, 6)).experts == "int4"


def test_an_engine_says_what_was_chosen_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = first_that_fits("bf16", 8 << 30)
    monkeypatch.setattr(loading, "_kept", lambda *args: choice)
    with load_engine("tiny-a") as engine:
        told = f", float32, experts int4 in groups of 128, linears float8_e4m3fn ({choice.why})\n"
        assert told in engine.description()


@pytest.mark.parametrize("linears", ["bf16", "fp8"])
@pytest.mark.parametrize("experts", ["bf16", "fp8", "int4"])
def test_the_options_decide(experts: Experts, linears: Linears) -> None:
    for memory, device in ((1, GPU), (80, GPU), (80, CPU)):
        for own in ("bf16", "fp8"):
            expected = Choice(experts=experts, linears=linears)
            assert kept_of(memory, own, device, experts=experts, linears=linears) == expected


@pytest.mark.parametrize("own", ["bf16", "fp8"])
def test_a_cpu_computes_unquantised_what_fits(own: Experts) -> None:
    """The published model takes 18.6, 10.5 and 6.7 of 10^9 bytes, a sequence's cache 0.8, the work 1.1."""
    assert kept_of(24, own, CPU) == Choice(experts="bf16")
    for memory, experts in ((16, "int8"), (11, "int4"), (1, "int4")):
        choice = kept_of(memory, own, CPU)
        assert (choice.experts, choice.linears) == (experts, "bf16") and "would take: bf16 19." in choice.why
    assert kept_of(1, "bf16", CPU, capability=(0, 0), linears="fp8").linears == "fp8"


def test_int8_is_for_a_cpu() -> None:
    assert kept_of(1, "bf16", CPU, experts="int8") == Choice(experts="int8")
    with pytest.raises(ConfigError, match='experts is "int8", which only a CPU computes: use "fp8" or "int4" on cuda'):
        kept_of(80, "bf16", GPU, experts="int8")


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (7, 5)], ids=str)
def test_a_chip_without_fp8_products_is_told(capability: tuple[int, int]) -> None:
    major, minor = capability
    with pytest.raises(
        ConfigError, match=rf'^linears is "fp8", but .* {major}\.{minor}, .* need 8\.9: .*"bf16" or "auto"'
    ):
        kept_of(80, "bf16", capability=capability, linears="fp8")
    assert kept_of(80, "bf16", capability=(8, 9), linears="fp8").linears == "fp8"


def test_linears_in_fp8_go_with_bfloat16_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r'^linears is "fp8", but the dtype is float32'):
        kept_of(80, "bf16", linears="fp8", dtype="float32")
    assert kept_of(9, "bf16", dtype="float32").linears == "bf16"
    assert kept_of(80, "bf16", CPU, linears="fp8", dtype="float32").linears == "fp8"
