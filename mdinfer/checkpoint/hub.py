"""Weights from the Hugging Face Hub, through its own client, which resumes and caches.

The client is imported only when something is to be downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mdinfer.errors import CheckpointError

_BESIDE = ("config.json", "tokenizer.json")
SAFETENSORS = (*_BESIDE, "*.safetensors", "*.safetensors.index.json")
TORCH = (*_BESIDE, "*.pt")


def download(repo: str, patterns: tuple[str, ...], *, progress: bool) -> Path:
    """Directory with a repository's top-level files of these patterns. Raises CheckpointError."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{repo!r} is not on this disk and huggingface_hub, which would fetch it, is missing: "
            "pip install huggingface_hub, or give a directory"
        ) from error
    try:
        with _bars(progress):
            return Path(snapshot_download(repo, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:  # the client lets those of its network stack through
        raise CheckpointError(_explain(repo, error)) from error


@contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """Silence the client's progress bars, which is a switch of the process, for the duration."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if progress or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _explain(repo: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    tried = f"{repo!r} is no directory here and could not be fetched from the Hugging Face Hub"
    if isinstance(error, errors.GatedRepoError):
        return f"{tried}: accept its terms on https://huggingface.co/{repo}, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{tried}: no such repository, or a private one; check the name, or log in with `hf auth login`"
    if constants.HF_HUB_OFFLINE:
        return f"{tried}: HF_HUB_OFFLINE is set and the cache lacks it; unset it, or give a directory"
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
        return f"{tried}: the Hub is out of reach and the cache lacks it; check the network, or give a directory"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{tried} ({os.strerror(error.errno)}): check the space and rights of the cache (HF_HOME)"
    return f"{tried} ({type(error).__name__}): run again to resume the download"
