"""The checkpoint that needs no download: Moondream's structure at toy size with random, untrained weights.

Its answers are noise, letters and control tokens that show as nothing; it exists so that every command, route and
call can be tried at once and offline.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping

import torch
from tokenizers.pre_tokenizers import ByteLevel

from mdinfer.checkpoint import random_weights
from mdinfer.config import ModelConfig

NAME = "demo"
NOTICE = "the demo checkpoint is untrained: its answers are noise, often without a letter"
_CONTROL = 16
_BYTES = {char: _CONTROL + i for i, char in enumerate(sorted(ByteLevel.alphabet()))}


def demo_config() -> ModelConfig:
    """About 1.5 M parameters; one token a byte."""

    def spelled(text: str) -> list[int]:
        return [_BYTES[char] for char in text.replace(" ", "\u0120")]

    return ModelConfig.from_dict(
        {
            "text": {
                "dim": 128,
                "ff_dim": 256,
                "n_layers": 4,
                "n_heads": 2,
                "vocab_size": _CONTROL + 256,
                "moe": {
                    "num_experts": 8,
                    "start_layer": 2,
                    "experts_per_token": 2,
                    "expert_inner_dim": 64,
                },
            },
            "vision": {
                "enc_dim": 144,
                "enc_n_layers": 2,
                "enc_ff_dim": 288,
                "enc_n_heads": 2,
                "proj_out_dim": 128,
                "proj_inner_dim": 256,
                "crop_size": 112,
                "overlap_margin": 2,
            },
            "region": {"dim": 128, "coord_feat_dim": 32, "size_feat_dim": 64},
            "tokenizer": {
                "templates": {
                    "caption": {
                        length: [1, *spelled(f"caption {length}"), 2, 3] for length in ("short", "normal", "long")
                    },
                    **{
                        skill: {"prefix": [1, *spelled(skill), 2], "suffix": [3]}
                        for skill in ("query", "detect", "point")
                    },
                }
            },
        }
    )


def demo_tokenizer_json() -> str:
    """A byte-level tokenizer of the starmie family's form: 16 control tokens, then the 256 bytes."""
    names = ["<|endoftext|>", *(f"<|md_reserved_{i}|>" for i in range(_CONTROL - 1))]
    vocabulary = {name: i for i, name in enumerate(names)} | _BYTES
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(names)],
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": None,
            "decoder": level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        }
    )


def fill_demo_weights(weights: Mapping[str, torch.Tensor]) -> None:
    """Random weights that choose among lower-case letters, the space and control ids, which show as nothing.

    weights: canonical name -> the tensor to fill in place.
    """
    random_weights(weights, seed=0)
    spoken = [_BYTES[char] for char in string.ascii_lowercase + "\u0120"]
    bias = weights["text.lm_head.bias"]
    bias[_CONTROL:] = -100.0
    bias[spoken] = 0.0
