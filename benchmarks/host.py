"""The host's part of a decoding step, measured on this CPU: all but starting the graph and waiting for it."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.batch import PAGE_SIZE, Batch
from benchmarks.report import median
from mdinfer.config import ModelConfig
from mdinfer.cuda_graphs import bucket_sizes
from mdinfer.flight import _sampled_tokens
from mdinfer.model.moondream import Moondream
from mdinfer.step_input import decode_arrays
from mdinfer.upload import Packing, host_buffer

_META = torch.device("meta")


def host_times(config: ModelConfig, size: int, context: int, steps: int) -> dict[str, Any]:
    """Medians in microseconds: the scheduler's plan, arrays made and packed, tokens out of tensors, the commit."""
    model = Moondream(config, dtype=torch.bfloat16, device=_META, max_context=context + steps + 1)
    batch = Batch(model, size, context, steps)
    batch.commit(batch.plan())
    rows = next(bucket for bucket in bucket_sizes(max(64, size)) if bucket >= size)
    choice = torch.ones(4, rows, dtype=torch.int64)
    choice[0], choice[1], choice[2] = 20, 0, 0
    times: dict[str, list[float]] = {"plan": [], "pack": [], "read": [], "commit": []}
    tables = batch.runner._tables
    for _ in range(steps - 1):
        marks = [time.perf_counter()]
        plan = batch.plan()
        marks.append(time.perf_counter())
        arrays = decode_arrays(plan, tables, PAGE_SIZE, rows, size)
        packing = Packing(arrays)
        packing.fill(host_buffer(packing.nbytes, _META), arrays)
        marks.append(time.perf_counter())
        tokens = _sampled_tokens([chunk.sequence for chunk in plan.decode], choice, None, None, None, None)
        marks.append(time.perf_counter())
        batch.commit(plan, tokens)
        marks.append(time.perf_counter())
        for name, start, end in zip(times, marks, marks[1:], strict=False):
            times[name].append(1e6 * (end - start))
    found = {name: median(values) for name, values in times.items()}
    return {"batch": size, **found, "all": sum(found.values())}
