"""Damaged files, shards and indexes are refused with what is wrong and what to do."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mdinfer.checkpoint import find_checkpoint
from mdinfer.errors import CheckpointError
from tests.checkpoint.models import empty_targets
from tests.checkpoint.refusals import CONFIG, NORM, WEIGHTS, edit_header, published, refused
from tests.checkpoint.writers import write_fp8_pt, write_published


@pytest.mark.parametrize("keep", [0, 4, 8, 300], ids=lambda keep: f"{keep}B")
def test_truncated_in_the_header(keep: int, tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, rf"no valid header in its {keep} bytes.*download it again")


@pytest.mark.parametrize("cut", [1, 5000])
def test_truncated_in_a_tensor(cut: int, tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    size = path.stat().st_size - cut
    path.write_bytes(path.read_bytes()[:-cut])
    refused(path, rf"tensor model\.\S+ should end at byte \d+ of model\.safetensors, which has {size} bytes")


def test_truncated_after_it_was_found(tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    found = find_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"tensor model\.\S+: model\.safetensors ends inside it"):
        found.load_into(empty_targets(CONFIG), progress=False)


def test_removed_after_it_was_found(tmp_path: Path) -> None:
    for path in (published(tmp_path / "a", lambda tensors: None), write_fp8_pt(tmp_path / "b", CONFIG, WEIGHTS)):
        found = find_checkpoint(path)
        path.unlink()
        with pytest.raises(CheckpointError, match=r"No such file or directory"):
            found.load_into(empty_targets(CONFIG), progress=False)


def test_longer_than_its_header_says(tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    path.write_bytes(path.read_bytes() + b"more")
    refused(path, r"has \d+ bytes, its header describes \d+")


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b'{"a": 1}', b"\xff\xff", b"[" * 100_000], ids=lambda raw: str(raw[:9])
)
def test_corrupt_header(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(path, "header.*damaged or not safetensors; download it again|no valid header")


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": None},
        {"shape": [-64]},
        {"shape": [64.0]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 1 << 70]},
        {"data_offsets": None},
    ],
    ids=str,
)
def test_corrupt_entry(entry: dict[str, object], tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    edit_header(path, lambda header: header[NORM].update(entry))
    refused(path, f"entry of {NORM} has no valid shape and offsets")


def test_an_entry_whose_size_is_not_its_shape(tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    edit_header(path, lambda header: header[NORM].update(shape=[63]))
    refused(path, rf"tensor {NORM} .* shape \(63,\) of BF16 takes 126 bytes, the header gives it 128")


def test_overlapping_tensors(tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)

    def overlap(header: dict[str, Any]) -> None:
        start, end = header[NORM]["data_offsets"]
        header[NORM]["data_offsets"] = [start - 2, end - 2]

    edit_header(path, overlap)
    refused(path, rf"tensor {NORM} in model\.safetensors overlaps model\.\S+")


def test_the_same_name_twice_in_one_header(tmp_path: Path) -> None:
    path = published(tmp_path, lambda tensors: None)
    raw = path.read_bytes()
    other = b'"model.text.blocks.0.ln.weight"'
    path.write_bytes(raw.replace(other, b'"model.text.blocks.1.ln.weight"'))
    refused(path, f"{NORM} is there twice")


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(tmp_path, "Git LFS pointer, not the weights: run `git lfs pull`")


# Shards and their index


def edit_index(index: Path, change: Callable[[dict[str, str]], object]) -> None:
    raw = json.loads(index.read_text())
    change(raw["weight_map"])
    index.write_text(json.dumps(raw))


def test_a_missing_shard(tmp_path: Path) -> None:
    index = write_published(tmp_path, CONFIG, WEIGHTS, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(index, r"names 'model-00002-of-00003\.safetensors', which is not a file.*download it again, all 3 shards")


def test_a_shard_elsewhere(tmp_path: Path) -> None:
    index = write_published(tmp_path, CONFIG, WEIGHTS, shards=2)
    edit_index(index, lambda shard_of: shard_of.update({NORM: "../model.safetensors"}))
    refused(index, r"names '\.\./model\.safetensors', which is not a file in")


def test_a_tensor_the_shards_lack(tmp_path: Path) -> None:
    index = write_published(tmp_path, CONFIG, WEIGHTS, shards=2)
    edit_index(index, lambda shard_of: shard_of.update({"model.text.more": "model-00001-of-00002.safetensors"}))
    refused(
        index, r"tensor model\.text\.more: .* says it is in model-00001-of-00002\.safetensors, the shards say no file"
    )


def test_a_tensor_in_another_shard(tmp_path: Path) -> None:
    index = write_published(tmp_path, CONFIG, WEIGHTS, shards=2)
    edit_index(index, lambda shard_of: shard_of.update({NORM: "model-00001-of-00002.safetensors"}))
    edit_index(index, lambda shard_of: shard_of.update({"model.text.wte": "model-00002-of-00002.safetensors"}))
    refused(index, r"tensor model\.text\.\S+: .* index and shards are of different checkpoints")


def test_a_tensor_the_index_lacks(tmp_path: Path) -> None:
    index = write_published(tmp_path, CONFIG, WEIGHTS, shards=2)
    edit_index(index, lambda shard_of: shard_of.pop(NORM))
    refused(index, rf"tensor {NORM}: model\.safetensors\.index\.json says it is in no file")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    index = write_published(tmp_path, CONFIG, WEIGHTS, shards=2)
    for shard in sorted(tmp_path.glob("*.safetensors")):
        save_file({**load_file(shard), NORM: torch.ones(64)}, shard)
    refused(index, rf"tensor {NORM} is in model-00001-of-00002\.safetensors and again in model-00002-of-00002")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_corrupt_index(text: str, tmp_path: Path) -> None:
    index = write_published(tmp_path, CONFIG, WEIGHTS, shards=2)
    index.write_text(text)
    refused(index, r"model\.safetensors\.index\.json (is not valid JSON|has no \"weight_map\").*download it again")
