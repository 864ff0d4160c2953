"""Moondream 3: vision tower, text decoder and region heads, with weights that a checkpoint fills."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mdinfer.config import ModelConfig
from mdinfer.kernels import dispatch, input_embeddings, region_values
from mdinfer.model.layers import Linear
from mdinfer.model.moe import ExpertMlp, ExpertWeight
from mdinfer.model.region import Region
from mdinfer.model.text import Tau, TextDecoder
from mdinfer.model.vision import VisionTower


class Moondream(nn.Module):
    """Parameters carry the published checkpoint's names without `model.`; Wq and Wv are one `tau.wqwv`.

    Of quantised weights, a `scale` stands beside each `weight`. `expert_dtype` and `linear_dtype` default to `dtype`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        expert_dtype: torch.dtype | None = None,
        linear_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        max_context: int | None = None,
    ) -> None:
        super().__init__()
        device = torch.device(device)
        self.config, self.dtype, self.device = config, dtype, device
        self.text = TextDecoder(
            config.text,
            max_context=max_context or config.text.max_context,
            dtype=dtype,
            expert_dtype=expert_dtype or dtype,
            linear_dtype=linear_dtype or dtype,
            device=device,
        )
        self.vision = VisionTower(config.vision, dtype=dtype, linear_dtype=linear_dtype or dtype, device=device)
        self.region = Region(config.region, dtype=dtype, device=device)

    def weights(self) -> dict[str, torch.Tensor]:
        """Canonical name -> the tensor to fill in place, until it is laid out."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    @torch.inference_mode()
    def lay_out(self, names: Iterable[str] | None = None, *, widen: bool = True) -> None:
        """Once, when a weight is filled: put it into what a CPU multiplies best. Some of `weights` are packed then; of
        packed experts they have shape and type alone. What they were is freed. Neither copied nor saved can it be then.

        names: of parameters; without them, all.
        widen: hold experts in fp8 multiplied out, in bfloat16, where that makes them faster; it takes twice the memory.
        """
        if dispatch.compiled(self.text.wte):
            return
        for name in list(self.weights()) if names is None else names:
            above, _, kind = name.rpartition(".")
            module = self.get_submodule(above)
            if isinstance(module, Tau) and kind == "wqwv":
                module.lay_out()
            elif kind != "weight" or name.startswith("region."):  # region heads read their weights themselves
                continue
            elif isinstance(module, Linear):
                module.lay_out()
            elif isinstance(module, ExpertWeight):
                layer = self.get_submodule(above.rpartition(".")[0])
                assert isinstance(layer, ExpertMlp)
                layer.lay_out(module, widen=widen)

    @property
    def weight_bytes(self) -> int:
        """Of memory that weights take, without what oneDNN pads odd shapes with."""
        packed = (each.packed for each in self.modules() if isinstance(each, ExpertWeight))
        held = [weight for weight in self.weights().values() if not weight.is_meta]
        return sum(weight.nbytes for weights in (held, *packed) for weight in weights)

    def embed(
        self, tokens: torch.Tensor, kinds: torch.Tensor, values: torch.Tensor, images: torch.Tensor | None
    ) -> torch.Tensor:
        """(T, D) input rows.

        tokens (T,) int64, kinds (T,) TokenKind, values (T, 2) float32 (a coordinate in column 0, or a size);
        images (M, D): features of the M positions of kind IMAGE, in order.
        """
        return input_embeddings(self.text.wte, tokens, kinds, values, self.region.encoders(), images)

    def decode_values(self, hidden: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """(B, 2) float32: the coordinate in column 0, or width and height, or zeros, by each row's TokenKind."""
        return region_values(hidden, kinds, self.region.heads())
