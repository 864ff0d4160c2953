"""Model sizes that benchmarks can make up, all of Moondream 3's structure."""

from __future__ import annotations

from typing import Any

from mdinfer.config import ModelConfig

_TEMPLATES = {
    "caption": {length: [1, 20, 2, 21, 3] for length in ("short", "normal", "long")},
    **{skill: {"prefix": [1, 22, 2], "suffix": [3]} for skill in ("query", "detect", "point")},
}


def _scaled(
    *, dim: int, layers: int, dense: int, ff: int, experts: tuple[int, int, int], vocab: int, vision: dict[str, int]
) -> ModelConfig:
    """experts = (how many, how many a token takes, inner dim)."""
    count, chosen, inner = experts
    raw: dict[str, Any] = {
        "text": {
            "dim": dim,
            "ff_dim": ff,
            "n_layers": layers,
            "n_heads": dim // 64,
            "vocab_size": vocab,
            "moe": {
                "num_experts": count,
                "experts_per_token": chosen,
                "expert_inner_dim": inner,
                "start_layer": dense,
            },
        },
        "vision": {"proj_out_dim": dim, **vision},
        "region": {"dim": dim},
        "tokenizer": {"templates": _TEMPLATES},
    }
    return ModelConfig.from_dict(raw)


_SMALL_TOWER = {"enc_dim": 288, "enc_n_heads": 4, "enc_n_layers": 8, "enc_ff_dim": 1152, "proj_inner_dim": 1024}
_MEDIUM_TOWER = {"enc_dim": 576, "enc_n_heads": 8, "enc_n_layers": 12, "enc_ff_dim": 2304, "proj_inner_dim": 4096}

SIZES = {
    "full": ModelConfig(),
    "1b": _scaled(dim=1024, layers=16, dense=3, ff=4096, experts=(32, 4, 640), vocab=32000, vision=_MEDIUM_TOWER),
    "200m": _scaled(dim=768, layers=12, dense=4, ff=3072, experts=(8, 2, 512), vocab=51200, vision=_SMALL_TOWER),
    "200m-64x8": _scaled(dim=768, layers=12, dense=4, ff=3072, experts=(64, 8, 64), vocab=51200, vision=_SMALL_TOWER),
    "20m": _scaled(dim=256, layers=6, dense=2, ff=1024, experts=(16, 2, 128), vocab=4096, vision=_SMALL_TOWER),
}
"""Name -> sizes: the published model, and smaller ones of its structure.

"200m" has 8 experts of which a token takes 2; "200m-64x8" the same number of parameters in the published 64 and 8.
The more experts there are, the less of them a batch shares: 4 tokens touch about 2.7 and 3.3 times what one does.
"""
