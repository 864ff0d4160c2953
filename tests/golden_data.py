"""The golden data as tests want it: its files, its tiny models, its cases as requests, and how an answer is judged."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import mdinfer
from mdinfer.config import ModelConfig
from mdinfer.model.moondream import Moondream
from mdinfer.request import Request

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = ("tiny-a", "tiny-b")
ROOM_FOR_STOP = 5  # tokens more than a stopped answer has, so that it is not the budget that ends it

Case = Mapping[str, Any]


def checkpoint(name: str) -> Path:
    return GOLDEN / "checkpoints" / name


def image_file(path: str) -> str:
    """Of a path as the cases write it, "images/x.png"."""
    return os.fspath(GOLDEN / path)


def data(name: str, part: str) -> Any:
    return json.loads((GOLDEN / "golden" / name / f"{part}.json").read_text(encoding="utf-8"))


def sampling_data() -> Any:
    return json.loads((GOLDEN / "sampling.json").read_text(encoding="utf-8"))


def cases(name: str, part: str) -> list[Case]:
    """part is "e2e" or "chat"."""
    found: list[Case] = data(name, part)["cases"]
    return found


@functools.cache
def tensors(name: str, part: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "golden" / name / f"{part}.safetensors")


@functools.cache
def model(name: str, dtype: torch.dtype = torch.float32) -> Moondream:
    """The tiny model, filled without the engine's own checkpoint reader."""
    built = Moondream(ModelConfig.from_file(checkpoint(name) / "config.json"), dtype=dtype)
    stored = {
        key.removeprefix("model."): value
        for file in checkpoint(name).glob("*.safetensors")
        for key, value in load_file(file).items()
    }
    for key, target in built.weights().items():
        if key.endswith("tau.wqwv"):
            base = key.removesuffix("wqwv")
            target.copy_(torch.cat((stored.pop(base + "wq"), stored.pop(base + "wv"))))
        else:
            assert stored[key].shape == target.shape, key
            target.copy_(stored.pop(key))
    assert not stored, sorted(stored)
    return built


def crops_of(path: str, tiling: tuple[int, int]) -> torch.Tensor:
    """Crops made with Pillow alone: the whole picture, then tiles of 378 at steps of 266."""
    rows, cols = tiling
    with Image.open(image_file(path)) as picture:
        rgb = picture.convert("RGB")
    small = np.asarray(rgb.resize((378, 378), Image.Resampling.LANCZOS))
    big = np.asarray(rgb.resize((cols * 266 + 112, rows * 266 + 112), Image.Resampling.LANCZOS))
    tiles = [big[266 * i : 266 * i + 378, 266 * j : 266 * j + 378] for i in range(rows) for j in range(cols)]
    return torch.from_numpy(np.stack([small, *tiles]))


def load_engine(name: str, **options: Any) -> mdinfer.Engine:
    """By the golden data's rules unless told otherwise: float32, no EXIF rotation."""
    rules = {"dtype": "float32", "exif": False, "progress": False, "device": "cpu", "kv_memory": "64MiB"}
    return mdinfer.Engine.load(checkpoint(name), **{**rules, **options})


def request_of(case: Case) -> Request:
    """A case of e2e.json; one budget covers a trace and its answer, and an answer that stops has room to."""
    args, kind = case["args"], case["kind"]
    image: Any = image_file(case["image"]) if case["image"] else None
    if kind == "detect":
        return mdinfer.Detect(image=image, object=args["object"], max_objects=args["max_objects"], clip=False)
    if kind == "point":
        return mdinfer.Point(image=image, object=args["object"], max_objects=args["max_objects"])
    if kind == "caption":
        return mdinfer.Caption(image=image, length=args["length"], temperature=0, max_tokens=args["max_tokens"])
    return mdinfer.Query(
        image=image,
        question=args["question"],
        reasoning=args["reasoning"],
        spatial_refs=args.get("spatial_refs", ()),
        temperature=0,
        max_tokens=_budget(case["expect"]),
    )


def chat_of(case: Case) -> mdinfer.Chat:
    """A case of chat.json."""

    def content(parts: Any) -> Any:
        if isinstance(parts, str):
            return parts
        return [
            {"type": "image", "image": image_file(case["images"][part["image"]])}
            if "image" in part
            else {"type": "text", "text": part["text"]}
            for part in parts
        ]

    messages = [{"role": m["role"], "content": content(m["content"])} for m in case["messages"]]
    return mdinfer.Chat(
        messages=messages, reasoning=case["reasoning"], temperature=0, max_tokens=_budget(case["expect"])
    )


def _budget(expect: Case) -> int:
    answer, trace = expect["answer"], expect.get("reasoning")
    if trace and trace["finish"] == "length":
        return len(trace["token_ids"])
    room = ROOM_FOR_STOP if answer["finish"] == "stop" else 0
    return len(answer["token_ids"]) + room + (len(trace["token_ids"]) if trace else 0)


def check(case: Case, result: mdinfer.Result) -> None:
    """Assert that the answer to `request_of` or `chat_of` is the golden one."""
    expect, name = case["expect"], case["id"]
    if "prompt_positions" in case:
        assert result.usage.prompt_tokens == case["prompt_positions"], name
    if case.get("kind") == "detect":
        assert [_box_bins(box) for box in result.objects] == [tuple(b.values()) for b in expect["bins"]], name
        for box, sides in zip(result.objects, expect["objects"], strict=True):
            assert all(abs(a - b) < 1e-6 for a, b in zip(box, sides.values(), strict=True)), name
        assert result.token_ids == [5, 5, 6] * len(expect["bins"]), name
    elif case.get("kind") == "point":
        assert [tuple(p) for p in result.points] == [(p["x"], p["y"]) for p in expect["points"]], name
        assert [(p.x * 1024, p.y * 1024) for p in result.points] == [tuple(b.values()) for b in expect["bins"]], name
        assert result.token_ids == [5, 5] * len(expect["bins"]), name
    else:
        _check_text(name, expect, result)


def _check_text(name: str, expect: Case, result: mdinfer.Result) -> None:
    trace, answer = expect.get("reasoning"), expect["answer"]
    if trace is None:
        assert (result.reasoning, result.grounding, result.reasoning_token_ids) == (None, [], []), name
    else:
        assert result.reasoning_token_ids == trace["token_ids"], name
        assert result.reasoning == trace["text"], name
        found = [(g.start_idx, g.end_idx, [list(p) for p in g.points]) for g in result.grounding]
        assert found == [(g["start_idx"], g["end_idx"], g["points"]) for g in trace["grounding"]], name
        coordinates = [v for _, _, points in found for p in points for v in p]
        assert coordinates == trace["coords"][: len(coordinates)], name
        assert result.usage.reasoning_tokens == len(trace["token_ids"]), name
        if trace["finish"] == "length":
            assert (result.text, result.token_ids, result.finish_reason) == ("", [], "length"), name
            return
    assert result.token_ids == answer["token_ids"], name
    assert result.text == answer["text"], name
    assert result.finish_reason == answer["finish"], name
    assert result.usage.completion_tokens == len(result.token_ids) + len(result.reasoning_token_ids), name


def _box_bins(box: mdinfer.Box) -> tuple[int, ...]:
    """Undo centre -+ half extent, bin / 1024 and 2^(10 bin / 1023 - 10)."""
    centre = ((box.x_min + box.x_max) / 2, (box.y_min + box.y_max) / 2)
    extent = (box.x_max - box.x_min, box.y_max - box.y_min)
    return (*(round(c * 1024) for c in centre), *(round((math.log2(e) + 10) / 10 * 1023) for e in extent))
