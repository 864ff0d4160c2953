"""From a command's options to an engine, an image, a request that can run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mdinfer.errors import ImageError
from mdinfer.options import EngineConfig
from mdinfer.server.commands.options import ENGINE, stated
from mdinfer.server.protocols import ServingEngine


def load_engine(model: str, **options: Any) -> ServingEngine:
    """Raises ConfigError, CheckpointError or TokenizerError."""
    from mdinfer.engine import Engine

    return Engine.load(model, **options)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Checked before anything slow begins. Raises ConfigError."""
    options = stated(args, ENGINE)
    EngineConfig(**options)
    return options


@contextmanager
def loaded_engine(args: argparse.Namespace) -> Iterator[ServingEngine]:
    """The engine of --model for one command."""
    engine = load_engine(args.model, **engine_options(args))
    try:
        yield engine
    finally:
        engine.close()


def read_image(path: str) -> bytes:
    """Raises ImageError with the path as the user wrote it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or 'cannot be read'}") from None
