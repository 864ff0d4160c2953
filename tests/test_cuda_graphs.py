"""What can be said of CUDA graphs without a GPU: buckets, and that a recorded step reads nothing back.

The full-size model runs on the meta device, where a number cannot be read, with its kernels taken down instead of
started: whatever would make the host wait, or depend on a number, fails.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from mdinfer.config import ModelConfig
from mdinfer.cuda_graphs import DecodeGraphs, Mode, VisionGraphs, bucket_sizes
from mdinfer.kernels import dispatch
from mdinfer.kernels._triton.launch import Launch, Target, recorded
from mdinfer.model.batch import KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.runner import Runner

META = torch.device("meta")
H100 = Target(capability=90, processors=132, shared=227 * 1024)
LAYERS, CROP = 3, 378


def test_buckets() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(3) == [1, 2, 3]
    assert bucket_sizes(16) == [1, 2, 4, 8, 16]
    assert bucket_sizes(64) == [1, 2, 4, 8, 16, 32, 48, 64]
    assert bucket_sizes(70) == [1, 2, 4, 8, 16, 32, 48, 64, 70]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(dispatch, "compiled", lambda x: True)
    config = ModelConfig.from_dict(
        {"text": {"n_layers": LAYERS, "moe": {"start_layer": 1}}, "vision": {"enc_n_layers": 2}}
    )
    model = Moondream(config, dtype=torch.bfloat16, device=META)
    cache = KVCache.allocate(config.text, pages=128, page_size=32, dtype=torch.bfloat16, device=META)
    return Runner(model, cache, max_batch_size=64, vision_crops=13, graphs=True)


def launches(runner: Runner, rows: int, text: bool, values: bool) -> list[Launch]:
    graphs = runner._decode
    assert isinstance(graphs, DecodeGraphs)
    with torch.inference_mode(), recorded(run=False, target=H100) as found:
        chosen, carried = graphs._step(Mode(rows, text, values))._recording.replay()
    assert chosen is not None and chosen.choice.shape == (4, rows)
    assert (carried is not None) == values
    return found


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize(("text", "values"), [(True, False), (True, True), (False, True)])
def test_a_decoding_step_reads_nothing_back(runner: Runner, rows: int, text: bool, values: bool) -> None:
    names = Counter(launch.name for launch in launches(runner, rows, text, values))
    assert names["decode_attention_kernel"] == LAYERS
    assert names["moe_route_kernel"] == LAYERS - 1
    assert not any(name.startswith("prefill") for name in names)
    assert ("values_kernel" in names) == values
    assert names["choose_kernel"] == 1


def test_a_vision_pass_reads_nothing_back(runner: Runner) -> None:
    graphs = runner._vision
    assert isinstance(graphs, VisionGraphs)
    for count in (1, 7, 13):
        with torch.inference_mode(), recorded(run=False, target=H100) as found:
            features = graphs.crop_features(torch.zeros(count, CROP, CROP, 3, dtype=torch.uint8, device=META))
        assert features.shape[0] == count
        assert Counter(launch.name for launch in found)["crop_attention_kernel"] == 2
    assert graphs.count == 13
