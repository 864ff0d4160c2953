"""Operations that would start something are counted, others are not; memory is counted while it is in use."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.trace import allocating, storage_of, traced
from mdinfer.kernels import layer_norm

META = torch.device("meta")


def test_views_and_unset_memory_start_nothing() -> None:
    x = torch.empty(4, 6, device=META)
    with torch.inference_mode(), traced() as trace:
        for y in (x.view(6, 4), x.t(), x[1:], x.chunk(2, -1)[0], x.reshape(24), x.contiguous(), x.float()):
            assert storage_of(y) == storage_of(x)
        torch.empty_like(x), x.new_empty(3)
    assert trace.starts == []


def test_what_fills_or_writes_is_counted_in_order_with_kernels_between() -> None:
    x, w = torch.empty(4, 8, device=META), torch.empty(8, 8, device=META)
    with torch.inference_mode(), traced() as trace:
        y = F.linear(x, w, w[0])
        layer_norm(y, w[0], w[1])
        y.add_(1)
        x.t().contiguous()
        torch.zeros(3, device=META)
        torch.arange(12).view(3, 4).to(META)
        w[0] = y[0]
    names = [(start.kind, start.name.partition(".")[0]) for start in trace.starts]
    assert names == [
        ("torch", "linear"),
        ("kernel", "layer_norm_kernel"),
        ("torch", "add_"),
        ("torch", "contiguous"),
        ("torch", "zeros"),
        ("upload", "to"),
        ("torch", "copy_"),
    ]
    assert {storage_of(t) for t in trace.starts[0].tensors} == {storage_of(x), storage_of(w)}


def test_memory_counts_while_it_is_in_use() -> None:
    """Of each of four tensors of 1000 bytes, rounded up to 1024, at most two are in use at once."""
    x = torch.empty(250, device=META)
    with torch.inference_mode(), allocating() as peak:
        a = x + 1
        assert peak() == 1024
        b = a[:100] + 1  # 400 bytes take 512
        del a
        c = x + 1
        del b, c
        d = x + 1
        layer_norm(d.view(1, 250), x, x)
    assert peak() == 2048
