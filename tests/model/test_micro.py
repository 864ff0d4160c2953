"""Single operations against the golden tensors: what a wrong eps, GELU kind, rotation or position would change.

Tolerance 1e-4, and 1e-5 where LayerNorm meets low variance: there an eps of 1e-6 is off by more than that.
"""

from __future__ import annotations

import pytest
import torch

from mdinfer.kernels import (
    ExpertWeights,
    LayerCache,
    Routing,
    TokenKind,
    TokenPlaces,
    decode_coordinate,
    decode_size,
    encode_values,
    layer_norm,
    moe_experts,
    moe_route,
    qkv_epilogue,
    region_values,
    rope_table,
)
from mdinfer.kernels.region import coordinate_logits, size_logits
from mdinfer.model.layers import Mlp
from tests.golden_data import CHECKPOINTS, model, tensors


@pytest.fixture(params=CHECKPOINTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def worst(found: torch.Tensor, golden: torch.Tensor) -> float:
    assert found.shape == golden.shape
    return (found - golden).abs().max().item()


def epilogue(
    qkv_TX: torch.Tensor, tau_wqwv: torch.Tensor, alpha: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and the cached k, each (T, H, K), with one page that holds all tokens."""
    T, H = len(qkv_TX), len(alpha)
    K = qkv_TX.shape[1] // (3 * H)
    cache = torch.zeros(2, 1, H, T, K)
    table = rope_table(int(positions.max()) + 1, K, "cpu")
    places = TokenPlaces.of(positions, torch.zeros(T, dtype=torch.int64), torch.arange(T), table)
    q = qkv_epilogue(qkv_TX, tau_wqwv, alpha, places, LayerCache(k=cache[0], v=cache[1]))
    return q, cache[0, 0].transpose(0, 1)


def test_layer_norm_of_low_variance(name: str) -> None:
    golden, ln = tensors(name, "micro"), model(name).text.post_ln
    assert worst(ln(golden["ln.low_variance_in"]), golden["ln.low_variance_out"]) <= 1e-5
    wrong = layer_norm(golden["ln.low_variance_in"], ln.weight, ln.bias, 1e-6)
    assert worst(wrong, golden["ln.low_variance_out"]) > 1e-5


def test_rope_turns_halves(name: str) -> None:
    golden = tensors(name, "micro")
    rows = golden["rope.in"].transpose(0, 1)  # (T, H, K)
    T, H, K = rows.shape
    qkv = torch.zeros(T, 3, H, K)
    qkv[:, 1] = rows
    _, k = epilogue(qkv.view(T, -1), torch.zeros(2 * H, 3 * H * K), torch.zeros(H), golden["rope.positions"].long())
    assert worst(k.transpose(0, 1), golden["rope.out_half_split"]) <= 1e-4


def test_tau_grows_with_the_position(name: str) -> None:
    """With Wq and Wv zero the temperature is its position term alone; the last dim of q, 1, is not rotated."""
    golden, text = tensors(name, "micro"), model(name).config.text
    H, K, positions = text.n_heads, text.head_dim, golden["rope.positions"].long()
    alpha = model(name).get_parameter("text.blocks.0.attn.tau.alpha")
    q, _ = epilogue(torch.ones(len(positions), 3 * H * K), torch.zeros(2 * H, 3 * H * K), alpha, positions)
    assert worst(q[..., -1], golden["tau_position.layer0"]) <= 1e-4


def test_one_moe_layer(name: str) -> None:
    golden, text = tensors(name, "micro"), model(name).config.text
    layer = model(name).get_submodule(f"text.blocks.{text.moe.start_layer}.mlp")
    logits = layer.get_submodule("router")(golden["moe.in"])
    assert worst(logits, golden["moe.router_logits"]) <= 1e-4
    routing = moe_route(logits, text.moe.experts_per_token)
    assert torch.equal(routing.experts, golden["moe.topk_idx"])
    assert worst(routing.weights, golden["moe.topk_gate"]) <= 1e-4
    assert worst(layer(golden["moe.in"]), golden["moe.out"]) <= 1e-4
    for i in range(len(logits)):  # one token alone takes another way through the kernel
        assert worst(layer(golden["moe.in"][i : i + 1]), golden["moe.out"][i : i + 1]) <= 1e-4


def test_one_dense_layer(name: str) -> None:
    golden = tensors(name, "micro")
    assert worst(model(name).get_submodule("text.blocks.0.mlp")(golden["dense.in"]), golden["dense.out"]) <= 1e-4


def test_the_dense_gelu_is_tanh_and_that_of_experts_and_tau_is_exact() -> None:
    """Each operation with weights of one and zero, so that nothing but its GELU is left."""
    golden = tensors("tiny-a", "micro")
    x = golden["gelu.in"][:, None]
    assert worst(golden["gelu.exact"], golden["gelu.tanh"]) > 4e-4  # the two can be told apart
    dense = Mlp(1, 1, 1, dtype=torch.float32, device="cpu")
    for parameter, value in zip(dense.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
        parameter.fill_(value)
    assert worst(dense(x)[:, 0], golden["gelu.tanh"]) <= 1e-5
    routing = Routing(experts=torch.zeros(len(x), 1, dtype=torch.int64), weights=torch.ones(len(x), 1))
    weights = ExpertWeights(fc1=torch.tensor([[[1.0], [0.0]]]), fc2=torch.ones(1, 1, 1))
    expert = moe_experts(x, routing, weights)
    assert worst(expert[:, 0], golden["gelu.exact"]) <= 1e-5

    qkv, wq = torch.zeros(len(x), 12), torch.zeros(2, 12)  # one head of 4 dims, of which 2 are rotated
    qkv[:, 0], qkv[:, 3], wq[0, 0] = x[:, 0], 1.0, 1.0
    q, _ = epilogue(qkv, wq, torch.zeros(1), torch.zeros(len(x), dtype=torch.int64))
    assert worst(q[:, 0, 3] - 1.0, golden["gelu.exact"].tanh()) <= 1e-5  # the position term is 0.5 + sigmoid(0)


def test_region_heads(name: str) -> None:
    golden, region = tensors(name, "region"), model(name).region
    heads, (coord, size) = region.heads(), region.encoders()
    hidden = golden["hidden"]
    assert worst(coordinate_logits(hidden, heads), golden["coord_logits"]) <= 1e-4
    assert worst(size_logits(hidden, heads), golden["size_logits"]) <= 1e-4
    assert worst(encode_values(golden["coord_values"][:, None], coord), golden["coord_emb"]) <= 1e-4
    assert worst(encode_values(golden["size_values"], size), golden["size_emb"]) <= 1e-4
    kinds = torch.full((len(hidden),), int(TokenKind.COORD))
    bins = golden["coord_logits"].argmax(dim=-1)
    assert torch.equal(region_values(hidden, kinds, heads)[:, 0], bins / 1024)
    sizes = golden["size_bin_values"][golden["size_logits"].argmax(dim=-1)]
    kinds.fill_(int(TokenKind.SIZE))
    assert worst(region_values(hidden, kinds, heads), sizes) <= 1e-6


def test_every_bin_has_its_value(name: str) -> None:
    """Sizes rise by a factor of 2^(10/1023) a bin: 1e-6 of a value is far below that, and above float32's 1e-7."""
    golden = tensors(name, "region")["size_bin_values"]
    one_hot = torch.eye(1024)
    sizes = decode_size(torch.stack((one_hot, one_hot.flip(0)), dim=1))
    assert ((sizes[:, 0] - golden).abs() / golden).max().item() <= 1e-6
    assert torch.equal(sizes[:, 1], sizes[:, 0].flip(0))
    assert (sizes[0, 0].item(), sizes[-1, 0].item()) == (2**-10, 1.0)
    assert decode_coordinate(one_hot).tolist() == [i / 1024 for i in range(1024)]
