"""From a command's options to an engine, an image, a request that can run."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from mdinfer.errors import ConfigError, ImageError
from mdinfer.options import EngineConfig
from mdinfer.server.commands.interrupt import ending_the_process
from mdinfer.server.commands.options import ENGINE, stated
from mdinfer.server.protocols import ServingEngine

MAX_IMAGE_BYTES = 512 << 20


def load_engine(model: str, **options: Any) -> ServingEngine:
    """Raises ConfigError, CheckpointError or TokenizerError."""
    from mdinfer.engine import Engine

    return cast(ServingEngine, Engine.load(model, **options))


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `load_engine` takes, checked before anything slow begins. Raises ConfigError."""
    options = stated(args, ENGINE)
    if args.no_prefix_cache:
        options["prefix_cache"] = False
    EngineConfig(**options)
    if args.tokenizer is None:
        return options
    if not os.path.isfile(args.tokenizer):
        raise ConfigError(f"--tokenizer {args.tokenizer}: there is no such file, it must be a tokenizer.json")
    return {**options, "tokenizer": args.tokenizer}


@contextmanager
def loaded_engine(args: argparse.Namespace) -> Iterator[ServingEngine]:
    """The engine of --model for one command."""
    options = engine_options(args)
    with ending_the_process():
        engine = load_engine(args.model, **options)
    try:
        yield engine
    finally:
        engine.close()


def read_image(path: str) -> bytes:
    """Raises ImageError with the path as the user wrote it. A device or pipe is refused, it might never end."""
    try:
        mode = os.stat(path).st_mode
        data = b""
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except ValueError:
        raise ImageError(f"{path!r}: not a path") from None
    if not stat.S_ISREG(mode):
        raise ImageError(f"{path}: {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}")
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"{path}: larger than {MAX_IMAGE_BYTES >> 20} MiB, which no picture needs")
    return data
