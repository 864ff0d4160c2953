"""Golden answers end to end on the Triton kernels, in the interpreter where there is no GPU: pictures to tokens.

One caption, one detection and one conversation about two pictures, together in one engine, in float32.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import dispatch
from mdinfer.kernels._triton import attention, moe_configs, norm, qkv
from mdinfer.kernels._triton.launch import Config, recorded
from mdinfer.loop import EngineLoop
from tests.golden_data import cases, chat_of, check, load_engine, request_of

NAME = "tiny-b"
KERNELS = {
    "add_layer_norm_kernel",
    "bias_gelu_kernel",
    "bias_residual_kernel",
    "choose_kernel",
    "copy_pages_kernel",
    "crop_attention_kernel",
    "crop_patches_kernel",
    "decode_attention_kernel",
    "grouped_fc1_kernel",
    "grouped_fc2_kernel",
    "heads_kernel",
    "input_kernel",
    "joined_map_kernel",
    "layer_norm_kernel",
    "moe_order_kernel",
    "moe_route_kernel",
    "prefill_attention_kernel",
    "qkv_write_kernel",
    "scan_kernel",
    "small_fc1_kernel",
    "small_fc2_kernel",
    "sum_choices_kernel",
    "tau_product_kernel",
    "values_kernel",
}


def larger_programs(patch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for each operation of a program, not for each number."""
    patch.setitem(attention.CONFIGS, "float32", Config(blocks={"BLOCK_M": 256, "BLOCK_N": 256}))
    patch.setitem(qkv.CONFIGS, "float32", Config(blocks={"BLOCK_M": 256, "BLOCK_X": 256}))
    patch.setitem(qkv.CONFIGS, "write", Config(blocks={"ROWS": 1024}))
    patch.setattr(moe_configs, "_FLOAT32", (256, 256, 4))
    for width, config in norm.CONFIGS.items():
        patch.setitem(norm.CONFIGS, width, Config(blocks={"ROWS": 256}, warps=config.warps))
    moe_configs.product_config.cache_clear()


def on_kernels(monkeypatch: pytest.MonkeyPatch) -> tuple[str, set[str]]:
    """The device on which engines run on kernels from here on, in the interpreter where there is no GPU; and the names
    of all that they launch.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        monkeypatch.setattr(dispatch, "compiled", lambda x: True)
        larger_programs(monkeypatch)
    seen: set[str] = set()
    step = EngineLoop._step

    def counted(loop: EngineLoop) -> None:
        with recorded() as launches:
            step(loop)
        seen.update(launch.name for launch in launches)

    monkeypatch.setattr(EngineLoop, "_step", counted)
    return device, seen


def test_golden_answers_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    device, seen = on_kernels(monkeypatch)
    wanted = {f"{NAME}.caption_normal.0", f"{NAME}.detect.0", f"{NAME}.chat.two_images_one_turn"}
    work = [(case, request_of(case)) for case in cases(NAME, "e2e") if case["id"] in wanted]
    work += [(case, chat_of(case)) for case in cases(NAME, "chat") if case["id"] in wanted]
    assert len(work) == len(wanted)
    with load_engine(NAME, device=device) as engine:
        results = engine.generate([request for _, request in work])
    moe_configs.product_config.cache_clear()
    for (case, _), result in zip(work, results, strict=True):
        check(case, result)
    assert seen == KERNELS
