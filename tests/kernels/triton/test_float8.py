"""e4m3 conversions by integer operations, which every chip and the interpreter share, against torch's own."""

from __future__ import annotations

import torch

from mdinfer.kernels._triton.float8 import LARGEST
from tests.kernels.compare import randn
from tests.kernels.triton.jit import decode_kernel, encode_kernel


def test_all_patterns_decode(device: torch.device) -> None:
    patterns = torch.arange(256, dtype=torch.uint8, device=device)
    found = torch.empty(256, device=device)
    decode_kernel[(1,)](patterns, found, N=256)
    want, number = patterns.view(torch.float8_e4m3fn).float(), (patterns & 0x7F) != 0x7F
    assert torch.equal(found[number], want[number])


def test_values_encode_to_the_nearest(device: torch.device) -> None:
    """All representable values, the midpoints between them (ties), their float32 neighbours, and random ones."""
    exact = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (exact[1:] + exact[:-1]) / 2
    up, down = torch.full_like(middle, 1e9), torch.full_like(middle, -1e9)
    values = torch.cat((exact, middle, middle.nextafter(up), middle.nextafter(down), randn(2000) * 3, randn(1000) / 64))
    values = torch.cat((values, -values)).clamp(-LARGEST, LARGEST)
    values = torch.nn.functional.pad(values, (0, 8192 - len(values))).to(device)
    found = torch.empty(8192, dtype=torch.uint8, device=device)
    encode_kernel[(1,)](values, found, N=8192)
    assert torch.equal(found, values.to(torch.float8_e4m3fn).view(torch.uint8))
