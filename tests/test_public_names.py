"""The contract: names that users see, the fields of what they pass and get, and the signatures of the calls."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import mdinfer
import mdinfer.kernels

NAMES = """
    Box Caption Chat CheckpointError ConfigError DeadlineError Detect EncodedImage Engine EngineConfig EngineDeadError
    EngineStats Event
    Grounding ImageError MdinferError Metrics ModelConfig OutOfMemoryError Point PromptTooLongError Query QueueFullError
    RequestCancelledError RequestError RequestFailedError RequestHandle Result Sampling TokenLogprob TokenizerError
    TopLogprob Usage XY __version__
"""
SAMPLING = "temperature top_p max_tokens seed stop logprobs"
FIELDS = {
    "Sampling": SAMPLING,
    "Query": f"{SAMPLING} question image reasoning spatial_refs",
    "Caption": f"{SAMPLING} image length",
    "Detect": "image object max_objects clip",
    "Point": "image object max_objects spatial_refs",
    "Chat": f"{SAMPLING} messages reasoning",
    "Result": (
        "text reasoning grounding objects points token_ids reasoning_token_ids logprobs finish_reason usage metrics"
    ),
    "Event": "text reasoning point box logprobs finish_reason usage result",
    "Usage": "prompt_tokens completion_tokens image_tokens cached_tokens reasoning_tokens",
    "Metrics": "image_s queue_s vision_s prefill_s ttft_s decode_s total_s",
    "EngineStats": (
        "running waiting pages_total pages_free pages_cached prefix_queries prefix_hits preemptions steps "
        "images_encoded prompt_tokens generation_tokens"
    ),
    "TokenLogprob": "token_id token data logprob top",
    "EngineConfig": (
        "device dtype experts linears kv_dtype max_batch_size kv_memory max_context page_size prefix_cache "
        "prefill_tokens vision_crops image_cache cuda_graphs overlap dependent_launch two_streams max_queue exif "
        "cpu_threads resize image_threads max_image_pixels progress"
    ),
    "ModelConfig": "text vision region tokenizer",
}
TUPLES = {
    "Box": "x_min y_min x_max y_max",
    "XY": "x y",
    "Grounding": "start_idx end_idx points",
    "TopLogprob": "token_id token logprob",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "Query": {
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 768,
        "seed": None,
        "stop": (),
        "logprobs": None,
        "image": None,
        "reasoning": False,
        "spatial_refs": (),
    },
    "Caption": {"length": "normal"},
    "Detect": {"max_objects": 150, "clip": True},
    "Point": {"max_objects": 150, "spatial_refs": ()},
    "Chat": {"reasoning": False},
}
METHODS = {
    "load": "model tokenizer options",
    "query": "self image question reasoning spatial_refs sampling",
    "caption": "self image length sampling",
    "detect": "self image object max_objects clip",
    "point": "self image object max_objects spatial_refs",
    "chat": "self messages reasoning sampling",
    "stream": "self request submission",
    "generate": "self requests progress",
    "encode_image": "self image",
    "submit": "self request namespace priority timeout",
    "stats": "self",
    "description": "self",
    "warm_up": "self",
    "close": "self",
}
ERRORS = {
    "ConfigError": ("MdinferError", ValueError),
    "CheckpointError": ("MdinferError", Exception),
    "TokenizerError": ("MdinferError", Exception),
    "RequestError": ("MdinferError", ValueError),
    "ImageError": ("RequestError", ValueError),
    "PromptTooLongError": ("RequestError", ValueError),
    "QueueFullError": ("MdinferError", Exception),
    "RequestFailedError": ("MdinferError", Exception),
    "OutOfMemoryError": ("RequestFailedError", Exception),
    "DeadlineError": ("MdinferError", Exception),
    "RequestCancelledError": ("MdinferError", Exception),
    "EngineDeadError": ("MdinferError", Exception),
}


def test_names() -> None:
    assert sorted(mdinfer.__all__) == sorted(NAMES.split())
    assert all(hasattr(mdinfer, name) for name in mdinfer.__all__)


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    kind = getattr(mdinfer, name)
    assert [field.name for field in dataclasses.fields(kind)] == FIELDS[name].split()
    assert kind.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(kind))


@pytest.mark.parametrize("name", TUPLES)
def test_tuples(name: str) -> None:
    assert list(getattr(mdinfer, name)._fields) == TUPLES[name].split()


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    found = {field.name: field.default for field in dataclasses.fields(getattr(mdinfer, name))}
    assert {key: found[key] for key in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str) -> None:
    """Those with a coroutine beside them take the same arguments."""
    signature = inspect.signature(getattr(mdinfer.Engine, name))
    assert list(signature.parameters) == METHODS[name].split()
    if hasattr(mdinfer.Engine, f"a{name}"):
        twin = dict(inspect.signature(getattr(mdinfer.Engine, f"a{name}")).parameters)
        own = {key: value for key, value in signature.parameters.items() if key in twin}
        assert twin == own
        assert signature.parameters.keys() - twin.keys() <= {"progress"}


def test_coroutines_exist_for_every_call_that_waits() -> None:
    waiting = {"query", "caption", "detect", "point", "chat", "stream", "generate", "encode_image"}
    assert {name for name in METHODS if hasattr(mdinfer.Engine, f"a{name}")} == waiting


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    parent, builtin = ERRORS[name]
    kind = getattr(mdinfer, name)
    assert kind.__bases__[0] is getattr(mdinfer, parent)
    assert issubclass(kind, builtin)
    assert issubclass(kind, mdinfer.MdinferError)


def test_handle_and_picture() -> None:
    handle = {name for name in vars(mdinfer.RequestHandle) if not name.startswith("_")}
    assert handle == {"done", "cancel", "result", "aresult"}
    picture = {name for name in dir(mdinfer.EncodedImage) if not name.startswith("_")}
    assert picture == {"width", "height", "digest", "features", "close"}


def test_kernels_are_what_their_package_says() -> None:
    for name in mdinfer.kernels.__all__:
        assert getattr(mdinfer.kernels, name).__module__.startswith("mdinfer.kernels.")


def test_results_are_plain_values() -> None:
    usage = mdinfer.Usage(prompt_tokens=3, completion_tokens=4)
    assert (usage.total_tokens, usage.cached_tokens) == (7, 0)
    assert mdinfer.Event() == mdinfer.Event(text="", reasoning="")
    assert mdinfer.PromptTooLongError(9, 8).limit == 8
    assert mdinfer.RequestError("x", param="stop").param == "stop"
    assert mdinfer.ImageError("x").param == "image"
