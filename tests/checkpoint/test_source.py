"""Finding a checkpoint: directories, files, repositories, and what each refusal says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from mdinfer.checkpoint import find_checkpoint
from mdinfer.config import ModelConfig
from mdinfer.errors import CheckpointError, ConfigError
from tests.checkpoint.models import tiny_config
from tests.checkpoint.writers import random_canonical_weights, write_fp8_pt, write_fp8_safetensors, write_published

WEIGHTS = random_canonical_weights(tiny_config())


def test_a_directory_a_file_an_index(tmp_path: Path) -> None:
    single = write_published(tmp_path / "single", tiny_config(), WEIGHTS)
    index = write_published(tmp_path / "sharded", tiny_config(), WEIGHTS, shards=3)
    torch_file = write_fp8_pt(tmp_path / "pt", tiny_config(), WEIGHTS)
    for path in (single, index, torch_file):
        assert find_checkpoint(path).path == path
        assert find_checkpoint(path.parent).path == path
        assert find_checkpoint(str(path.parent)).config == tiny_config()


def test_an_index_comes_before_other_files(tmp_path: Path) -> None:
    write_fp8_pt(tmp_path, tiny_config(), WEIGHTS)
    assert find_checkpoint(tmp_path).layout == "fp8_pt"
    single = write_fp8_safetensors(tmp_path, tiny_config(), WEIGHTS)
    assert find_checkpoint(tmp_path).layout == "fp8_safetensors"
    index = write_published(tmp_path, tiny_config(), WEIGHTS, shards=2)
    assert find_checkpoint(tmp_path).path == index
    index.unlink()
    assert find_checkpoint(tmp_path).path == single


def test_the_layout_is_not_in_the_file_name(tmp_path: Path) -> None:
    fp8 = write_fp8_safetensors(tmp_path / "a", tiny_config(), WEIGHTS)
    assert find_checkpoint(fp8.rename(fp8.with_name("moondream3-published.safetensors")).parent).layout == (
        "fp8_safetensors"
    )


@pytest.mark.parametrize("text", [None, "{}", '{"config": {}}'])
def test_without_sizes_the_published_ones_hold(text: str | None, tmp_path: Path) -> None:
    path = write_published(tmp_path, tiny_config(), WEIGHTS)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert find_checkpoint(path).config == ModelConfig()


def test_a_bad_config_is_a_config_error(tmp_path: Path) -> None:
    write_published(tmp_path, tiny_config(), WEIGHTS)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        find_checkpoint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights in .*looked for model\.safetensors\.index\.json"):
        find_checkpoint(tmp_path)
    for missing in (tmp_path / "absent", tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=r"no directory and no file here.*moondream/moondream3-preview"):
            find_checkpoint(str(missing))
    with pytest.raises(CheckpointError, match="no directory and no file"):
        find_checkpoint(Path("owner/name"))


def test_too_much_there(tmp_path: Path) -> None:
    path = write_published(tmp_path, tiny_config(), WEIGHTS)
    shutil.copy(path, tmp_path / "a.safetensors")
    path.rename(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"has 2 \*\.safetensors files and no model\.safetensors\.index\.json"):
        find_checkpoint(tmp_path)


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"of no known kind: expected \.safetensors"):
        find_checkpoint(tmp_path / "model.gguf")


class Hub:
    """Stands in for `snapshot_download`: notes the calls, then copies files as asked or raises."""

    def __init__(self, directory: Path, *, error: Exception | None = None) -> None:
        self.directory, self.error = directory, error
        self.asked: list[list[str]] = []
        self.bars: list[bool] = []

    def __call__(self, repo: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        self.asked.append(allow_patterns)
        self.bars.append(not are_progress_bars_disabled())
        if self.error:
            raise self.error
        target = self.directory / "snapshot"
        target.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in self.directory.glob(pattern):
                shutil.copy(file, target)
        return str(target)


def install(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    return hub


def test_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_published(tmp_path, tiny_config(), WEIGHTS, shards=2)
    write_fp8_pt(tmp_path, tiny_config(), WEIGHTS)
    hub = install(monkeypatch, Hub(tmp_path))
    found = find_checkpoint("owner/name")
    assert (found.layout, found.directory, found.config) == ("published", tmp_path / "snapshot", tiny_config())
    assert not list(found.directory.glob("*.pt")), "the other layout of the repository was downloaded too"
    assert hub.bars == [True]
    find_checkpoint("owner/name", progress=False)
    assert hub.bars == [True, False]
    assert not are_progress_bars_disabled()


def test_a_repository_with_a_pt_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_fp8_pt(tmp_path, tiny_config(), WEIGHTS)
    hub = install(monkeypatch, Hub(tmp_path))
    assert find_checkpoint("owner/name").layout == "fp8_pt"
    assert len(hub.asked) == 2


def test_a_directory_comes_before_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_published(tmp_path / "owner" / "name", tiny_config(), WEIGHTS)
    hub = install(monkeypatch, Hub(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("owner/name").layout == "published"
    assert hub.asked == []


def refusal(kind: type[Exception]) -> Exception:
    """An error of the client without the HTTP response its constructor wants."""
    error = kind.__new__(kind)
    error.args = ("client's own text",)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refusal(errors.GatedRepoError), "accept its terms on https://huggingface.co/owner/name"),
        (refusal(errors.RepositoryNotFoundError), "no such repository, or a private one"),
        (errors.LocalEntryNotFoundError("no"), "out of reach and the cache lacks it; check the network"),
        (ConnectionError("refused"), "check the network"),
        (OSError(28, "No space left on device"), r"\(No space left on device\): check the space"),
        (RuntimeError("broken pipe"), r"\(RuntimeError\): run again to resume"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_refusals_of_the_hub(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, Hub(tmp_path, error=error))
    with pytest.raises(CheckpointError, match=said) as raised:
        find_checkpoint("owner/name")
    assert raised.value.__cause__ is error
    assert "client's own text" not in str(raised.value)


def test_offline_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client itself, not a stand-in: it must not touch the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set and the cache lacks it"):
        find_checkpoint("owner/name", progress=False)


def test_offline_with_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repo = tmp_path / "models--owner--name"
    write_published(repo / "snapshots" / ("a" * 40), tiny_config(), WEIGHTS, shards=2)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_checkpoint("owner/name", progress=False).config == tiny_config()


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        find_checkpoint("owner/name")
