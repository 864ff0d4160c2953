"""Keys and values of one layer in pages: what attention reads and the QKV epilogue writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mdinfer.kernels.quantise import quantise_rows_torch


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """k and v are (P, H, L, K), each head's slots of a page one run of memory.

    They hold numbers of a float dtype, or float8_e4m3fn; then k_scale and v_scale, (P, H, L) float32, hold for each
    token and head what its row is to be multiplied by, see `quantise_rows`.
    """

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        assert self.k.shape == self.v.shape and self.k.dtype == self.v.dtype
        assert self.k.is_contiguous() and self.v.is_contiguous(), "a page's heads and slots must lie in order"
        if self.k_scale is None or self.v_scale is None:
            assert self.k_scale is self.v_scale is None and self.k.dtype.itemsize > 1
        else:
            assert self.k.dtype == torch.float8_e4m3fn
            assert self.k_scale.shape == self.v_scale.shape == self.k.shape[:3]
            assert self.k_scale.is_contiguous() and self.v_scale.is_contiguous()

    @property
    def page_size(self) -> int:
        return self.k.shape[2]

    def write(self, page: torch.Tensor, slot: torch.Tensor, k_THK: torch.Tensor, v_THK: torch.Tensor) -> None:
        """Put the rows of T tokens into their slots; a token whose page is negative is left out."""
        if bool((page < 0).any()):
            kept = page >= 0
            page, slot, k_THK, v_THK = page[kept], slot[kept], k_THK[kept], v_THK[kept]
        for rows, stored, scale in ((k_THK, self.k, self.k_scale), (v_THK, self.v, self.v_scale)):
            if scale is None:
                stored[page, :, slot] = rows.to(stored.dtype)
                continue
            values, scales = quantise_rows_torch(rows.flatten(0, 1))
            # float8 tensors cannot be indexed on every device: their bytes can.
            stored.view(torch.uint8)[page, :, slot] = values.view(torch.uint8).view(rows.shape)
            scale[page, :, slot] = scales.view(rows.shape[:2])

    def pages(self, pages: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """k and v (n, H, L, K) of these pages as numbers; in place where they are consecutive and no fp8."""
        first, index = pages[0], None
        if pages != list(range(first, first + len(pages))):
            index = torch.tensor(pages, device=self.k.device)

        def chosen(whole: torch.Tensor) -> torch.Tensor:
            return whole[first : first + len(pages)] if index is None else whole.index_select(0, index)

        if self.k_scale is None or self.v_scale is None:
            return chosen(self.k), chosen(self.v)
        k, v = (chosen(stored.view(torch.uint8)).view(stored.dtype).float() for stored in (self.k, self.v))
        return k * chosen(self.k_scale)[..., None], v * chosen(self.v_scale)[..., None]
