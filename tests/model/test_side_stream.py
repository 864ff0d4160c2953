"""Work on a second stream: what waits for what, and that a layer's branches come out as they do in turn.

Streams that note what they are told stand for those of a GPU: here there may be none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mdinfer.model.batch import ForwardBatch
from mdinfer.model.side_stream import SideStream
from mdinfer.model.text import Attention, TextDecoder
from tests.golden_data import load_engine


@dataclass
class Cuda:
    """torch.cuda's part in it."""

    told: list[str] = field(default_factory=list)
    current: str = "main"

    def stream_named(self, name: str) -> Any:
        cuda = self

        class Stream:
            device = torch.device("cuda", 0)

            def wait_stream(self, other: Any) -> None:
                cuda.told.append(f"{name} waits for {other.name}")

        Stream.name = name  # type: ignore[attr-defined]
        return Stream()

    def Stream(self, device: torch.device) -> Any:  # noqa: N802  # torch's name
        assert device.type == "cuda"
        return self.stream_named("side")

    def current_stream(self, device: torch.device) -> Any:
        assert device == torch.device("cuda", 0)
        return self.stream_named(self.current)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    monkeypatch.setattr("mdinfer.model.side_stream.torch.cuda", cuda)
    return cuda


def test_what_waits_for_what(cuda: Cuda) -> None:
    side = SideStream(torch.device("cuda"))

    def work() -> str:
        cuda.told.append(f"work on {cuda.current}")
        return "done"

    assert side.begin(work) == "done" and cuda.current == "main"
    side.join()
    assert cuda.told == ["side waits for main", "work on side", "main waits for side"]


def test_a_failure_leaves_the_current_stream(cuda: Cuda) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        SideStream(torch.device("cuda")).begin(fail)
    assert cuda.current == "main"
    assert cuda.told == ["side waits for main", "main waits for side"]


class Told(SideStream):
    """Computes on the spot, and notes in which order it was asked."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, work: Callable[[], Any]) -> Any:
        self.told.append("begin")
        return work()

    def join(self) -> None:
        self.told.append("join")


def test_answers_are_the_same_and_prefill_keeps_to_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a whole engine: the MLP of each layer begins, attention follows, then they are joined."""
    steps: list[tuple[bool, bool]] = []
    forward = TextDecoder.forward

    def noted(self: TextDecoder, batch: ForwardBatch, cache: Any) -> torch.Tensor:
        steps.append((batch.side is not None, max(batch.attention.queries) > 1))
        return forward(self, batch, cache)

    def attention(self: Any, *args: Any) -> torch.Tensor:
        side.told.append("attention")
        return attend(self, *args)

    side, attend = Told(), Attention.forward
    with load_engine("tiny-a", prefix_cache=False) as engine:
        expected = engine.query(None, "What is 2 + 2?", temperature=0, max_tokens=12).token_ids
        monkeypatch.setattr(Attention, "forward", attention)
        monkeypatch.setattr(TextDecoder, "forward", noted)
        engine._loop._runner._side = side
        assert engine.query(None, "What is 2 + 2?", temperature=0, max_tokens=12).token_ids == expected
        layers = engine.config.text.n_layers
    decoding = sum(beside for beside, _ in steps)
    assert decoding > 5 and all(beside != prefills for beside, prefills in steps)
    in_decoding = [each for each in side.told if each != "attention"]
    assert in_decoding == ["begin", "join"] * layers * decoding
    told = "".join(each[0] for each in side.told)
    assert told.count("baj") == layers * decoding


def test_a_failure_of_attention_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the side still reads is taken again by the step done over; and a recording must not end unjoined."""

    def attention(self: Any, *args: Any) -> torch.Tensor:
        side.told.append("attention")
        if len(side.told) == 2:
            raise torch.OutOfMemoryError("none left")
        return attend(self, *args)

    side, attend = Told(), Attention.forward
    with load_engine("tiny-a", prefix_cache=False) as engine:
        expected = engine.query(None, "What is 2 + 2?", temperature=0, max_tokens=4).token_ids
        engine._loop._runner._side = side
        forward = TextDecoder.forward

        def failing(self: TextDecoder, batch: ForwardBatch, cache: Any) -> torch.Tensor:
            if batch.side is not None and "attention" not in side.told:
                monkeypatch.setattr(Attention, "forward", attention)
            return forward(self, batch, cache)

        monkeypatch.setattr(TextDecoder, "forward", failing)
        assert engine.query(None, "What is 2 + 2?", temperature=0, max_tokens=4).token_ids == expected
    assert side.told[:3] == ["begin", "attention", "join"]
    assert side.told.count("begin") == side.told.count("join") > 3


def test_without_a_gpu_there_is_none() -> None:
    with load_engine("tiny-a", two_streams=True) as engine:
        assert engine._loop._runner._side is None
