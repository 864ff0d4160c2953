"""config.json: published defaults, the shapes in which its keys are found, and sizes that cannot belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mdinfer import ConfigError, ModelConfig
from mdinfer.config import MoEConfig, RegionConfig, Template, Templates, TextConfig, TokenConfig, VisionConfig
from tests.golden_data import CHECKPOINTS, checkpoint

SMALL: dict[str, Any] = {
    "text": {"dim": 128, "n_heads": 2, "vocab_size": 51200},
    "vision": {"proj_out_dim": 128},
    "region": {"dim": 128},
}


def small(**sections: Any) -> dict[str, Any]:
    return {name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in {*SMALL, *sections}}


@pytest.mark.parametrize("raw", [{}, {"config": {}}, {"config": {"text": {}, "tokenizer": {}}, "model_type": "x"}])
def test_an_empty_config_is_the_published_model(raw: dict[str, Any]) -> None:
    assert ModelConfig.from_dict(raw) == ModelConfig()


def test_the_published_sizes_are_pinned() -> None:
    text, vision, region, tokens = TextConfig(), VisionConfig(), RegionConfig(), TokenConfig()
    assert (text.dim, text.ff_dim, text.n_layers, text.n_heads, text.head_dim) == (2048, 8192, 24, 32, 64)
    assert (text.vocab_size, text.max_context) == (51200, 4096)
    assert text.moe == MoEConfig(num_experts=64, start_layer=4, experts_per_token=8, expert_inner_dim=1024)
    assert [text.is_moe(i) for i in (0, 3, 4, 23)] == [False, False, True, True]
    assert (vision.enc_dim, vision.enc_n_layers, vision.enc_n_heads, vision.head_dim) == (1152, 27, 16, 72)
    assert (vision.enc_ff_dim, vision.proj_inner_dim, vision.proj_out_dim) == (4304, 8192, 2048)
    assert (vision.crop_size, vision.enc_patch_size, vision.grid, vision.positions) == (378, 14, 27, 729)
    assert (vision.max_crops, vision.overlap_margin, vision.patch_dim) == (12, 4, 588)
    assert (region.coord_feat_dim, region.size_feat_dim, region.coord_out_dim, region.size_out_dim) == (
        256,
        512,
        1024,
        2048,
    )
    assert (tokens.bos_id, tokens.eos_id, tokens.answer_id, tokens.thinking_id) == (0, 0, 3, 4)
    assert (tokens.coord_id, tokens.size_id, tokens.start_ground_points_id, tokens.end_ground_id) == (5, 6, 7, 9)


def test_the_published_templates_are_pinned() -> None:
    assert Templates() == Templates(
        caption_short=(1, 32708, 2, 12492, 3),
        caption_normal=(1, 32708, 2, 6382, 3),
        caption_long=(1, 32708, 2, 4059, 3),
        query=Template(prefix=(1, 15381, 2), suffix=(3,)),
        detect=Template(prefix=(1, 7235, 476, 2), suffix=(3,)),
        point=Template(prefix=(1, 2581, 2), suffix=(3,)),
    )


def test_the_grid_does_not_come_from_the_layer_count() -> None:
    assert ModelConfig.from_file(checkpoint("tiny-a") / "config.json").vision.grid == 27


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_sections_are_found_under_config_and_at_the_top(name: str) -> None:
    raw = json.loads((checkpoint(name) / "config.json").read_text())
    found = ModelConfig.from_file(checkpoint(name) / "config.json")
    assert found == ModelConfig.from_dict(raw["config"]) == ModelConfig.from_dict({**raw["config"], "more": 1})
    assert found.text.dim == {"tiny-a": 128, "tiny-b": 256}[name]
    assert found.tokenizer.templates.caption_short == (1, 77, 75, 430, 2, 93, 82, 416, 3)
    assert found.tokenizer.templates.detect == Template(prefix=(1, 78, 426, 2), suffix=(3,))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_to_dict_reads_back_as_the_same(name: str) -> None:
    for config in (ModelConfig.from_file(checkpoint(name) / "config.json"), ModelConfig()):
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_moe_keys_have_aliases() -> None:
    moe = {"n_experts": 16, "n_experts_per_tok": 4, "start_layer": 0, "expert_inner_dim": 8}
    found = ModelConfig.from_dict(small(text={"moe": moe})).text.moe
    assert found == MoEConfig(num_experts=16, experts_per_token=4, start_layer=0, expert_inner_dim=8)
    both = ModelConfig.from_dict(small(text={"moe": {"num_experts": 16, "experts_per_token": 4}})).text.moe
    assert (both.num_experts, both.experts_per_token) == (16, 4)


@pytest.mark.parametrize("moe", [None, {}])
def test_a_missing_moe_section_is_the_default(moe: object) -> None:
    assert ModelConfig.from_dict(small(text={"moe": moe})).text.moe == MoEConfig()


def test_unknown_keys_are_passed_over() -> None:
    raw = small(text={"group_size": None, "prefix_attn": 730, "n_kv_heads": 2}, other={"x": 1})
    assert ModelConfig.from_dict(raw) == ModelConfig.from_dict(SMALL)


def test_null_templates_keep_the_default() -> None:
    raw = small(tokenizer={"templates": {"query": None, "caption": None, "point": {"prefix": [1, 9]}}})
    found = ModelConfig.from_dict(raw).tokenizer.templates
    assert found.query == Templates().query
    assert found.point == Template(prefix=(1, 9), suffix=(3,))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"text": {"n_kv_heads": 1}}, "n_kv_heads"),
        ({"text": {"n_heads": 3}}, "multiple of n_heads"),
        ({"text": {"n_heads": 64}}, "RoPE"),
        ({"text": {"moe": {"num_experts": 4, "experts_per_token": 5}}}, "experts_per_token 5"),
        ({"text": {"dim": 256}}, "differ"),
        ({"region": {"dim": 64}}, "differ"),
        ({"vision": {"proj_out_dim": 64}}, "differ"),
        ({"vision": {"enc_n_heads": 7}}, "enc_n_heads"),
        ({"vision": {"crop_size": 379}}, "crop_size 379"),
        ({"vision": {"overlap_margin": 14}}, "overlap_margin 14"),
        ({"vision": {"in_channels": 4}}, "in_channels"),
        ({"region": {"coord_feat_dim": 33}}, "even"),
        ({"region": {"size_out_dim": 3}}, "even"),
        ({"tokenizer": {"coord_id": 16}}, "coord_id is 16"),
        ({"text": {"vocab_size": 512}}, "vocab_size is 512"),
    ],
)
def test_sizes_that_disagree(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelConfig.from_dict(small(**sections))


@pytest.mark.parametrize("value", [0, -1, 1.0, "128", True, None, [128]], ids=repr)
@pytest.mark.parametrize(("section", "key"), [("text", "dim"), ("vision", "crop_size"), ("region", "coord_out_dim")])
def test_a_size_that_is_no_positive_integer(section: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{section}.{key} must be an integer"):
        ModelConfig.from_dict(small(**{section: {key: value}}))


@pytest.mark.parametrize("value", [-1, 1.5, "0", True, 99])
def test_a_control_id_that_cannot_be(value: object) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.eos_id"):
        ModelConfig.from_dict(small(tokenizer={"eos_id": value}))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "config.json"),
        ("x", "config.json"),
        ({"config": []}, "'config'"),
        ({"text": []}, "'text'"),
        ({"vision": 3}, "'vision'"),
        ({"text": {"moe": [1]}}, "text.moe"),
        ({"tokenizer": {"templates": "x"}}, "templates"),
        ({"tokenizer": {"templates": {"query": [1, 2]}}}, "query"),
        ({"tokenizer": {"templates": {"query": {"prefix": "ab"}}}}, "query.prefix"),
        ({"tokenizer": {"templates": {"caption": {"short": [1, -2]}}}}, "caption.short"),
    ],
)
def test_a_section_of_another_type(raw: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelConfig.from_dict(raw)


@pytest.mark.parametrize("text", ["", "{", "[1,", "\xff"])
def test_a_file_that_is_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_file(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_file(tmp_path / "config.json")
