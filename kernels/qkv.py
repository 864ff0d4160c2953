"""What happens between the QKV product and attention: temperatures, rotary positions, the write into pages.

For token t at position p, head h, with z = qkv[t] (bias included) and f = gelu_erf(z):
    tau_q = tanh(f . Wq[h]) + s,   tau_v = tanh(f . Wv[h]) + s,   s = 0.5 + sigmoid(alpha[h] * ln(p + 1))
    q <- rope(q * tau_q, p),  k <- rope(k, p),  v <- v * tau_v
RoPE turns the first half of the head's dims, as pairs (i, i + K/4), by p * theta^(-i / (K/4)). All of it is
float32; the products with Wq and Wv run in the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mdinfer.kernels import dispatch
from mdinfer.kernels.cache import LayerCache
from mdinfer.kernels.linear import linear

ROPE_THETA = 1_500_000.0


def rope_table(positions: int, head_dim: int, device: torch.device | str, theta: float = ROPE_THETA) -> torch.Tensor:
    """(positions, 2, head_dim / 4) float32: cosines and sines; angles are rounded once, from float64."""
    quarter = head_dim // 4
    frequency = theta ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), dim=1).to(device, torch.float32)


@dataclass(frozen=True, kw_only=True)
class TokenPlaces:
    """Where each token of a step stands, in its sequence and in the cache: the same for all layers.

    log    (T,) float32, ln(p + 1) of its position p
    rope   (T, 2, K / 4) float32, its row of `rope_table`
    page   (T,) int64, the page its key and value go to (negative: nowhere), and
    slot   (T,) int64, the slot there
    """

    log: torch.Tensor
    rope: torch.Tensor
    page: torch.Tensor
    slot: torch.Tensor

    @classmethod
    def of(
        cls, positions_T: torch.Tensor, page_T: torch.Tensor, slot_T: torch.Tensor, rope: torch.Tensor
    ) -> TokenPlaces:
        """From positions (int64) and the table they index."""
        return cls(
            log=torch.log(positions_T.float() + 1), rope=rope.index_select(0, positions_T), page=page_T, slot=slot_T
        )


def qkv_epilogue(
    qkv_TX: torch.Tensor,
    tau_wqwv: torch.Tensor,
    tau_alpha: torch.Tensor,
    places: TokenPlaces,
    cache: LayerCache,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return q_THK ready for attention; write k and v of each token into its slot of the cache.

    qkv is the product's result, to which `bias` (X,) is still to be added if given; tau_wqwv (2H, X) holds Wq's
    rows, then Wv's; tau_alpha (H,) float32.
    """
    X, (H, _, K) = qkv_TX.shape[1], cache.k.shape[1:]
    assert X == 3 * H * K and tau_wqwv.shape == (2 * H, X) and tau_alpha.shape == (H,)
    if dispatch.compiled(qkv_TX):
        from mdinfer.kernels._triton import qkv

        return qkv.qkv_epilogue(qkv_TX, tau_wqwv, tau_alpha, places, cache, bias)
    return qkv_epilogue_torch(qkv_TX, tau_wqwv, tau_alpha, places, cache, bias)


def qkv_epilogue_torch(
    qkv_TX: torch.Tensor,
    tau_wqwv: torch.Tensor,
    tau_alpha: torch.Tensor,
    places: TokenPlaces,
    cache: LayerCache,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The torch body of `qkv_epilogue`."""
    T, (H, _, K) = len(qkv_TX), cache.k.shape[1:]
    if bias is not None:
        qkv_TX = qkv_TX + bias
    tau = torch.ones(T, 3, H, dtype=torch.float32, device=qkv_TX.device)  # of q, k (which has none) and v
    token = torch.tanh(linear(F.gelu(qkv_TX), tau_wqwv).float()).view(T, 2, H)
    position = torch.sigmoid(tau_alpha * places.log[:, None]).add_(0.5)
    torch.add(token, position[:, None], out=tau[:, ::2])
    scaled = qkv_TX.view(T, 3, H, K) * tau.unsqueeze(-1)
    _rotate(scaled[:, :2], places.rope)
    cache.write(places.page, places.slot, scaled[:, 1], scaled[:, 2])
    return scaled[:, 0].to(qkv_TX.dtype)


def _rotate(x_T2HK: torch.Tensor, angles: torch.Tensor) -> None:
    """Turn the first half of the last dimension in place by angles (T, 2, K/4)."""
    quarter = angles.shape[-1]
    cos, sin = angles[:, 0, None, None, :], angles[:, 1, None, None, :]
    first, second = x_T2HK[..., :quarter], x_T2HK[..., quarter : 2 * quarter]
    turned = torch.addcmul(second * cos, first, sin)
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.copy_(turned)
