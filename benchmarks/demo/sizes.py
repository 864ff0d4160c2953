"""How large the demo is."""

from __future__ import annotations

import tokenizers

from benchmarks.demo.tokens import SKILL_WORDS, VOCABULARY
from mdinfer.config import ModelConfig


def demo_config(tokenizer: tokenizers.Tokenizer) -> ModelConfig:
    """4.6 M parameters; the templates name the skills by the tokenizer's own tokens for their names.

    A picture takes 8 x 8 positions. At most 4 tiles (the published model: 12) keep a picture at 5 crops or fewer.
    """
    ids = {}
    for word in SKILL_WORDS:
        (ids[word],) = tokenizer.encode(word, add_special_tokens=False).ids
    return ModelConfig.from_dict(
        {
            "text": {
                "dim": 192,
                "ff_dim": 768,
                "n_layers": 6,
                "n_heads": 3,
                "vocab_size": VOCABULARY,
                "max_context": 4096,
                "moe": {
                    "num_experts": 8,
                    "start_layer": 2,
                    "experts_per_token": 2,
                    "expert_inner_dim": 64,
                },
            },
            "vision": {
                "enc_dim": 144,
                "enc_n_layers": 4,
                "enc_ff_dim": 576,
                "enc_n_heads": 2,
                "proj_out_dim": 192,
                "proj_inner_dim": 512,
                "crop_size": 112,
                "max_crops": 4,
                "overlap_margin": 2,
            },
            "region": {
                "dim": 192,
                "coord_feat_dim": 64,
                "coord_out_dim": 256,
                "size_feat_dim": 128,
                "size_out_dim": 512,
            },
            "tokenizer": {
                "templates": {
                    "caption": {length: [1, ids["caption"], 2, ids[length], 3] for length in SKILL_WORDS[4:]},
                    **{skill: {"prefix": [1, ids[skill], 2], "suffix": [3]} for skill in ("query", "detect", "point")},
                }
            },
        }
    )
