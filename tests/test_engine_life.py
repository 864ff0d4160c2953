"""An engine among others: dropped without `close`, at the interpreter's end, and requests beside one that breaks."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mdinfer
from mdinfer import Engine, Query, RequestFailedError
from mdinfer.runner import Runner
from tests.endless import endless_demo
from tests.golden_data import image_file, load_engine
from tests.waiting import wait_for, wait_idle

LEAVE = """
import sys, mdinfer
engine = mdinfer.Engine.load(sys.argv[1], progress=False)
handles = [engine.submit(mdinfer.Query(question="hello", max_tokens=3000)) for _ in range(8)]
next(iter(handles[0]))
{end}
"""
SHORT = Query(question="cat?", temperature=0, max_tokens=12)


@pytest.mark.parametrize(("end", "status"), [("sys.exit(0)", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_leaving_the_interpreter_with_work_in_flight(end: str, status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEAVE.format(end=end), str(endless_demo(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert "terminate called" not in done.stderr


def test_a_dropped_engine_frees_its_model_and_its_threads() -> None:
    before = set(threading.enumerate())
    engine = load_engine("tiny-a")
    handle = engine.submit(SHORT)
    handle.result(timeout=10)
    model = weakref.ref(engine._loaded.model)
    del engine
    gc.collect()
    wait_for(lambda: model() is None, "the model is freed, though a finished handle is kept")
    names = ("mdinfer-engine", "mdinfer-image", "mdinfer-teller")
    wait_for(lambda: not any(t.name.startswith(names) for t in set(threading.enumerate()) - before), "the threads end")
    assert handle.result().token_ids


def test_a_picture_that_breaks_the_vision_tower_harms_no_answer_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with load_engine("tiny-a") as engine:
        expected = engine.chat([{"role": "user", "content": "cat?"}], temperature=0, max_tokens=200).token_ids
        tower = engine._loop._runner.model.vision

        def fails(*_: object) -> list[torch.Tensor]:
            raise MemoryError

        monkeypatch.setattr(tower, "forward", fails)
        under_way = engine.submit(Query(question="cat?", temperature=0, max_tokens=200))
        next(iter(under_way))
        broken = engine.submit(mdinfer.Caption(image=image_file("images/p_100x80.png")))
        with pytest.raises(mdinfer.OutOfMemoryError):
            broken.result(timeout=10)
        assert under_way.result(timeout=30).token_ids == expected
        wait_idle(engine)


def test_numbers_that_are_not_finite_fail_their_request_alone() -> None:
    with load_engine("tiny-a") as engine:
        expected = engine.query(None, "cat?", temperature=0, max_tokens=12).token_ids
        with engine.encode_image(image_file("images/p_100x80.png")) as image:
            with torch.inference_mode():
                image.features().fill_(float("nan"))
            beside = engine.submit(SHORT)
            with pytest.raises(RequestFailedError, match="not finite"):
                engine.query(image, "cat?", temperature=0)
        assert beside.result(timeout=10).token_ids == expected
        assert engine.query(None, "cat?", temperature=0, max_tokens=12).token_ids == expected
        wait_idle(engine)


def test_many_through_a_short_queue_come_back_in_order(engine_a: Engine) -> None:
    questions = ["cat?", "What is this?", "Describe the picture", "query"] * 4
    requests = [Query(question=q, temperature=0, max_tokens=3) for q in questions]
    expected = {q: engine_a.query(None, q, temperature=0, max_tokens=3).token_ids for q in questions}
    with load_engine("tiny-a", max_batch_size=2, max_queue=1) as engine:
        assert [r.token_ids for r in engine.generate(iter(requests))] == [expected[q] for q in questions]
        found = asyncio.run(engine.agenerate(requests))
        assert [r.token_ids for r in found] == [expected[q] for q in questions]


def test_a_cancelled_agenerate_cancels_its_requests() -> None:
    with load_engine("tiny-a") as engine:
        engine._loaded.model.text.lm_head.bias[engine.config.tokenizer.eos_id] = -1e4  # no answer ends by itself

        async def run() -> None:
            requests = [Query(question="What is this?", temperature=0, max_tokens=3000)] * 4
            await asyncio.wait_for(engine.agenerate(requests), timeout=0.2)

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(run())
        wait_idle(engine)


def test_an_interrupted_call_cancels_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with load_engine("tiny-a") as engine:
        engine._loaded.model.text.lm_head.bias[engine.config.tokenizer.eos_id] = -1e4

        def interrupted(self: mdinfer.RequestHandle, timeout: float | None = None) -> mdinfer.Result:
            raise KeyboardInterrupt

        monkeypatch.setattr(mdinfer.RequestHandle, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.query(None, "What is this?", max_tokens=3000)
        wait_idle(engine)


def test_a_submitted_array_may_be_reused(engine_a: Engine) -> None:
    pictures = [np.full((40, 60, 3), value, dtype=np.uint8) for value in (0, 90, 180, 255)]
    expected = [engine_a.caption(p, temperature=0, max_tokens=6).token_ids for p in pictures]
    buffer = np.empty_like(pictures[0])
    handles = []
    for picture in pictures:
        buffer[:] = picture
        handles.append(engine_a.submit(mdinfer.Caption(image=buffer, temperature=0, max_tokens=6)))
    buffer[:] = 17
    assert [handle.result(timeout=30).token_ids for handle in handles] == expected


def test_a_submitted_buffer_may_be_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    with load_engine("tiny-a") as engine:
        read, go_on = engine._read_pictures, threading.Event()

        def later(task: Any) -> None:
            assert go_on.wait(10)
            read(task)

        monkeypatch.setattr(engine, "_read_pictures", later)
        buffer = bytearray(Path(image_file("images/p_100x80.png")).read_bytes())
        sources: list[Any] = [buffer, memoryview(buffer)]
        handles = [engine.submit(mdinfer.Caption(image=source, max_tokens=1)) for source in sources]
        buffer[:] = bytes(len(buffer))
        go_on.set()
        for handle in handles:
            assert handle.result(timeout=30).usage.completion_tokens == 1


def test_two_generates_share_a_short_queue() -> None:
    requests = [Query(question="cat?", temperature=0, max_tokens=2)] * 60
    with load_engine("tiny-a", max_batch_size=2, max_queue=2) as engine, ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(engine.generate, requests) for _ in range(3)]
        assert [len(run.result(timeout=60)) for run in runs] == [60, 60, 60]


def test_an_error_raised_again_does_not_grow(engine_a: Engine) -> None:
    handle = engine_a.submit(mdinfer.Caption(image=b"no picture"))
    depths = []
    for _ in range(20):
        with pytest.raises(mdinfer.ImageError) as caught:
            handle.result(timeout=10)
        depths.append(len(caught.traceback))
    assert depths[-1] <= depths[0]


def test_memory_that_is_not_there_is_a_named_error() -> None:
    with pytest.raises(mdinfer.ConfigError, match=r"the KV cache cannot be allocated .* kv_memory="):
        load_engine("tiny-a", kv_memory="64TiB", max_batch_size=4096, max_context=1 << 20)


def test_a_path_named_demo_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mdinfer.CheckpointError):
        Engine.load(Path("demo"), progress=False)


def test_devices_and_dtypes_of_torch_are_taken() -> None:
    with Engine.load("demo", device=torch.device("cpu"), dtype=torch.bfloat16, progress=False) as engine:
        assert "bfloat16" in engine.description()


LEAVE_PICTURES = """
import time, numpy, mdinfer, mdinfer.engine

def slow(*args, **options):
    print("read", flush=True)
    time.sleep(0.2)
    return prepare(*args, **options)

prepare, mdinfer.engine.open_picture = mdinfer.engine.open_picture, slow
engine = mdinfer.Engine.load("demo", progress=False, image_threads=2)
handles = [engine.submit(mdinfer.Caption(image=numpy.zeros((9, 9, 3), numpy.uint8))) for _ in range(40)]
"""


def test_leaving_the_interpreter_does_not_wait_for_queued_pictures() -> None:
    """Each thread ends the picture it holds, and may have taken one more before the end began."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVE_PICTURES], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 1 <= done.stdout.count("read") <= 4


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_a_step(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop has its own number, which no other thread has: neither one that was there nor one that is new."""
    seen: list[int] = []
    launch = Runner.launch

    def watched(self: Runner, *args: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return launch(self, *args, **options)

    monkeypatch.setattr(Runner, "launch", watched)
    here, before = torch.get_num_threads(), _threads_of_a_new_thread()
    with Engine.load("demo", device="cpu", cpu_threads=threads, progress=False) as engine:
        assert f"cpu ({threads} thread{'s' * (threads > 1)})" in engine.description()
        engine.query(None, "What is 2 + 2?")
        assert (torch.get_num_threads(), _threads_of_a_new_thread()) == (here, before)
    assert set(seen) == {threads}
    assert (torch.get_num_threads(), _threads_of_a_new_thread()) == (here, before)


def _threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_a_small_model_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Engine.load("demo", device="cpu", progress=False) as engine:
            assert "cpu (1 thread)" in engine.description()
        monkeypatch.setattr("mdinfer.engine._SHARED_FROM", 1)
        with Engine.load("demo", device="cpu", progress=False) as engine:
            assert "cpu (3 threads)" in engine.description()
    finally:
        torch.set_num_threads(before)
