"""EngineConfig: defaults, and a ConfigError that names the option for every value that cannot work."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mdinfer import ConfigError, EngineConfig
from mdinfer.memory import cache_pages, format_bytes
from mdinfer.options import parse_size
from tests.golden_data import load_engine, model


def test_defaults_are_pinned() -> None:
    assert dataclasses.asdict(EngineConfig()) == {
        "device": "auto",
        "dtype": "auto",
        "experts": "auto",
        "linears": "auto",
        "kv_dtype": "auto",
        "max_batch_size": 64,
        "kv_memory": "auto",
        "max_context": None,
        "page_size": 32,
        "prefix_cache": True,
        "prefill_tokens": 4096,
        "vision_crops": 13,
        "image_cache": 64,
        "cuda_graphs": "auto",
        "overlap": "auto",
        "dependent_launch": False,
        "two_streams": False,
        "max_queue": 1024,
        "exif": True,
        "cpu_threads": None,
        "resize": "cpu",
        "image_threads": None,
        "max_image_pixels": 50_000_000,
        "progress": True,
    }


@pytest.mark.parametrize(
    "option", ["max_batch_size", "page_size", "prefill_tokens", "vision_crops", "max_queue", "max_image_pixels"]
)
@pytest.mark.parametrize("value", [0, -1, 1.0, "8", True, None, 1 << 63], ids=repr)
def test_a_bad_count(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{option} must be an integer from"):
        EngineConfig(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"), [("max_context", 1), ("cpu_threads", 0), ("image_threads", 0), ("image_threads", 2.0)]
)
def test_a_bad_optional_count(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{option} must be"):
        EngineConfig(**{option: value})  # type: ignore[arg-type]
    assert getattr(EngineConfig(**{option: None}), option) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", "float16"),
        ("dtype", None),
        ("dtype", torch.float32),
        ("experts", "int3"),
        ("linears", "int4"),
        ("kv_dtype", "fp7"),
        ("resize", "gpu"),
        ("resize", None),
        ("device", "gpu"),
        ("device", "cuda:"),
        ("device", "cpu "),
        ("device", None),
        ("device", torch.device("cpu")),
    ],
    ids=repr,
)
def test_a_bad_choice(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{option} must be"):
        EngineConfig(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:11"])
def test_devices(device: str) -> None:
    assert EngineConfig(device=device).device == device


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (1, 1),
        (8589934592, 8 << 30),
        ("8GiB", 8 << 30),
        ("8 gib", 8 << 30),
        (" 8GB ", 8 * 10**9),
        ("500 MB", 500 * 10**6),
        ("1.5KiB", 1536),
        ("64", 64),
        ("64B", 64),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: int | str, count: int) -> None:
    assert parse_size(text, "kv_memory") == count
    assert EngineConfig(kv_memory=text).kv_memory == text


@pytest.mark.parametrize(
    "value",
    [0, -5, "0", "0GiB", "-1GiB", "8 elephants", "", "GiB", "1e9", "8 G", 1.5, True, None, "9" * 400],
    ids=lambda v: str(v)[:9],
)
def test_a_bad_size(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^kv_memory must be"):
        EngineConfig(kv_memory=value)


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().page_size = 4  # type: ignore[misc]


def test_cache_pages_are_what_the_batch_can_use_within_the_memory() -> None:
    """tiny-a: 2 (k, v) x 4 layers x 2 heads x 64 x 32 positions x 4 bytes = 131,072 bytes a page."""
    text = model("tiny-a").config.text

    def pages(**options: Any) -> int:
        return cache_pages(
            text, EngineConfig(**options), max_context=1000, dtype=torch.float32, device=torch.device("cpu")
        )

    assert pages(max_batch_size=2, kv_memory="1GiB") == 2 * 32
    assert pages(max_batch_size=2, page_size=64, kv_memory="1GiB") == 2 * 16
    assert pages(kv_memory=131_072 * 10 + 5) == 10
    with pytest.raises(ConfigError, match="one page of 32 positions needs 131072"):
        pages(kv_memory=131_071)


def test_memory_bounds_the_context() -> None:
    with load_engine("tiny-a", kv_memory=131_072 * 3) as engine:
        assert engine.max_context == 96
    with load_engine("tiny-a", max_context=8192) as engine:
        assert engine.max_context == 8192


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 << 30, "8.0 GiB"), (1 << 44, "16384.0 GiB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text
