"""Engines whose linears are in fp8: which weights those are, how far numbers move, answers on a CPU and on kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.demo.exam import facts
from benchmarks.demo.pictures import draw_scene, paint
from benchmarks.demo.seeing import listing
from mdinfer import ConfigError, Engine, loading
from mdinfer.checkpoint import find_checkpoint
from mdinfer.kernels._triton import moe_configs
from mdinfer.kernels.quantise import quantise_rows
from mdinfer.model.layers import Linear, Mlp
from mdinfer.model.moondream import Moondream
from tests.golden_data import CHECKPOINTS, checkpoint, load_engine
from tests.kernels.compare import randn, rms_ratio, to_array
from tests.model.test_text import Pass
from tests.test_golden_triton import on_kernels

FP8 = torch.float8_e4m3fn
QUESTION = "What is this, and where?"


def loaded(name: str, linears: torch.dtype) -> Moondream:
    found = find_checkpoint(checkpoint(name), progress=False)
    built = Moondream(found.config, linear_dtype=linears)
    found.load_into(built.weights(), progress=False)
    return built


def multiplied_out(name: str) -> Moondream:
    """The model whose linears are, in float32, what fp8 makes of their weights."""
    kept, plain = loaded(name, FP8).weights(), loaded(name, torch.float32)
    for key, target in plain.weights().items():
        if kept[key].dtype == FP8:
            target.copy_(kept[key].float() * kept[key.removesuffix("weight") + "scale"][:, None])
    return plain


def first_logits(built: Moondream, count: int) -> torch.Tensor:
    """Logits after each position of a fixed prompt of text."""
    ids = torch.arange(20, 20 + count)
    with torch.inference_mode():
        x = built.embed(ids, torch.zeros(count), torch.zeros(count, 2), None)
        return built.text.logits(Pass(built)(x, 0, torch.arange(1, count + 1)))


def test_which_weights_are_fp8() -> None:
    """All of attention, of dense layers, of the tower and its projection; nothing else, and scales beside them."""
    for name in CHECKPOINTS:
        built = loaded(name, FP8)
        text, vision = built.config.text, built.config.vision
        expected = {f"text.blocks.{n}.attn.{part}" for n in range(text.n_layers) for part in ("qkv", "proj")}
        expected |= {f"text.blocks.{n}.mlp.{part}" for n in range(text.moe.start_layer) for part in ("fc1", "fc2")}
        parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        expected |= {f"vision.blocks.{n}.{part}" for n in range(vision.enc_n_layers) for part in parts}
        expected |= {"vision.proj_mlp.fc1", "vision.proj_mlp.fc2"}
        weights = built.weights()
        assert {key.removesuffix(".weight") for key, value in weights.items() if value.dtype == FP8} == expected
        scales = {key.removesuffix(".scale"): value for key, value in weights.items() if key.endswith(".scale")}
        assert scales.keys() == expected
        assert all(value.shape == weights[f"{key}.bias"].shape for key, value in scales.items())


@pytest.mark.parametrize("shape", [(48, 40), (40, 48)], ids=str)
def test_a_shape_that_fp8_does_not_take_stays(shape: tuple[int, int]) -> None:
    layer = Linear(*shape, dtype=torch.bfloat16, device="cpu", kept=FP8)
    assert layer.weight.dtype == torch.bfloat16 and layer.scale is None


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_of_few_rows_are_those_of_the_weights_multiplied_out(name: str) -> None:
    found, expected = first_logits(loaded(name, FP8), 16), first_logits(multiplied_out(name), 16)
    assert (found - expected).square().mean().sqrt() / expected.square().mean().sqrt() < 1e-5


def rounded(x: torch.Tensor) -> torch.Tensor:
    q, scale = quantise_rows(x)
    return q.float() * scale[:, None]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_many_rows_are_rounded_on_their_way_into_each_product(name: str) -> None:
    """Layer by layer against the weights multiplied out: one product differs by the order of sums, 2^-22. In a second
    one behind it, at most 1e-4 of the rows' values (see `assert_rounded_alike`) are rounded to a neighbour by that,
    2^-3 away: 1.3e-3 of the product.
    """
    found, plain = loaded(name, FP8), multiplied_out(name)
    D, C = found.config.text.dim, found.config.vision.enc_dim
    pairs = [(a, b, D) for a, b in zip(found.text.blocks, plain.text.blocks, strict=True)]
    pairs += [(a, b, C) for a, b in zip(found.vision.blocks, plain.vision.blocks, strict=True)]
    for block, reference, width in pairs:
        h = randn(40, width)
        for part in ("qkv", "proj"):
            linear = getattr(reference.attn, part)
            want = linear(rounded(h))
            assert rms_ratio(getattr(block.attn, part)(h), to_array(want)) < 1e-5
        if isinstance(block.mlp, Mlp) and isinstance(reference.mlp, Mlp):
            inner = F.gelu(reference.mlp.fc1(rounded(h)), approximate="tanh")
            want = reference.mlp.fc2(rounded(inner))
            assert rms_ratio(block.mlp(h), to_array(want)) < 1.3e-3
            assert rms_ratio(block.mlp(h, h), to_array(want + h)) < 1.3e-3


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pictures_stay_near(name: str) -> None:
    """A product errs by at most 0.051 of its size (see `test_linear_fp8.py`), a branch, of two in a row, by sqrt(2) of
    that. The stream that L blocks add two branches each to, and that the projection's two products take, is off by at
    most sqrt(4 L + 2) of it, if every branch is as large as the stream and every error passes on in full.
    """
    crops = torch.randint(0, 256, (2, 378, 378, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    built = {dtype: loaded(name, dtype) for dtype in (torch.float32, FP8)}
    with torch.inference_mode():
        [[want], [found]] = (model.vision(crops, [(1, 1)], 2) for model in built.values())
    error = float((found - want).square().mean().sqrt() / want.square().mean().sqrt())
    assert 0.051 / 10 < error < 0.051 * (4 * built[FP8].config.vision.enc_n_layers + 2) ** 0.5


def answers(engine: Engine) -> list[list[int]]:
    picture = torch.arange(64 * 48 * 3).view(64, 48, 3).to(torch.uint8).numpy()
    found = [engine.query(None, question, temperature=0, max_tokens=12) for question in ("cat?", QUESTION)]
    return [result.token_ids for result in [*found, engine.caption(picture, temperature=0, max_tokens=12)]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("experts", ["bf16", "fp8", "int4"])
def test_an_engine_answers(experts: str, dtype: str) -> None:
    with load_engine("tiny-a", experts=experts, linears="fp8", dtype=dtype) as engine:
        found = answers(engine)
        assert all(found) and answers(engine) == found
        kept = {"bf16": "", "fp8": ", experts float8_e4m3fn", "int4": ", experts int4 in groups of 128"}[experts]
        said = engine.description().replace(" held as bfloat16", "")  # where that is, tests/model/test_lay_out.py asks
        assert f"{dtype}{kept}, linears float8_e4m3fn\n" in said


def test_steps_on_fixed_buffers_answer_the_same() -> None:
    """What a CUDA graph would record: no shape and no branch that depends on a value."""
    with load_engine("tiny-a", linears="fp8") as plain, load_engine("tiny-a", linears="fp8", cuda_graphs=True) as fixed:
        assert answers(plain) == answers(fixed)


def test_the_kernels_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of many rows, then steps of one, and a picture; in the interpreter where there is no GPU."""
    picture = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)

    def ask(engine: Engine) -> list[int]:
        return engine.query(picture, QUESTION, temperature=0, max_tokens=3).token_ids

    with load_engine("tiny-b", linears="fp8") as engine:
        expected = ask(engine)
    device, seen = on_kernels(monkeypatch)
    options = {"dtype": "bfloat16"} if device == "cuda" else {}
    with load_engine("tiny-b", device=device, linears="fp8", **options) as engine:
        found = ask(engine)
    moe_configs.product_config.cache_clear()
    assert found == expected or (device == "cuda" and found)  # tiny models' choices are not clear in bfloat16
    of_linears = {"few_rows_kernel", "quantise_rows_kernel", "bias_gelu_rows_kernel", "layer_norm_rows_kernel"}
    assert of_linears <= seen


def test_a_gpu_without_fp8_products_is_an_error_of_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(loading, "_capability", lambda device: (8, 6))
    with pytest.raises(ConfigError, match=r'^linears is "fp8", but the GPU.s compute capability is 8\.6'):
        load_engine("tiny-a", device="cuda", dtype="bfloat16", linears="fp8")


def test_the_demo_still_knows_what_it_knows() -> None:
    with Engine.load("demo", linears="fp8", device="cpu", progress=False) as engine:
        scene = draw_scene(np.random.default_rng(7), least=3, most=3)
        told = engine.query(np.asarray(paint(scene)), "What is in this image?", temperature=0).text
        assert facts(told) == facts(listing(scene.shapes))
        assert engine.query(None, "What is 2 + 2?", temperature=0).text == "4"
