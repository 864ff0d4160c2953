"""`mdinfer serve`: the options of the server. The serving itself is `serving.py`."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path
from typing import Any

from mdinfer.errors import ConfigError
from mdinfer.server.commands import environment
from mdinfer.server.commands.interrupt import ending_the_process
from mdinfer.server.commands.loading import engine_options
from mdinfer.server.commands.options import Commands, add_engine_options
from mdinfer.server.settings import DEFAULT_MODEL_NAMES, Settings

MAX_BODY_MB = 1 << 20
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

EPILOG = """\
examples:
  mdinfer serve
  mdinfer serve moondream/moondream3-preview --api-key-file keys.txt --host 0.0.0.0
  mdinfer serve ./checkpoint --port 8000 --served-model-name my-model

Without a key the server binds this machine only; --insecure overrules that. Every option can be given by the
environment variable named beside it; lists are separated by commas there, and the command line wins."""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="an OpenAI-compatible HTTP server",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help='"demo", a directory or a repository id (default: demo, untrained)',
    )
    _add_network_options(parser)
    _add_limits(parser)
    _add_output_options(parser)
    add_engine_options(parser)
    environment.document(parser)
    parser.set_defaults(run=functools.partial(run, parser))


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    defaults = Settings()
    group = parser.add_argument_group("network")
    group.add_argument("--host", help=f"address to bind (default: {defaults.host})")
    group.add_argument("--port", type=int, help=f"0 picks a free one (default: {defaults.port})")
    group.add_argument(
        "--api-key", action="append", metavar="KEY", help="a key that clients must send, any of them (repeatable)"
    )
    group.add_argument(
        "--api-key-file", metavar="PATH", help="a file of further keys, one a line; empty lines and # are skipped"
    )
    group.add_argument("--insecure", action="store_true", help="serve other machines without a key")
    group.add_argument(
        "--cors-origin", action="append", metavar="ORIGIN", help="a web origin that may call (repeatable)"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    defaults = Settings()
    group = parser.add_argument_group("limits")
    group.add_argument("--max-body-mb", type=float, metavar="MB", help="largest request body (default: 64)")
    group.add_argument(
        "--max-images", type=int, metavar="N", help=f"most images in a request (default: {defaults.max_images})"
    )
    group.add_argument("--max-queue", type=int, metavar="N", help="requests that may wait (default: 1024)")
    group.add_argument("--request-timeout", type=float, metavar="S", help="seconds a request may take (default: any)")
    group.add_argument(
        "--body-timeout",
        type=float,
        metavar="S",
        help=f"seconds in which a body must make progress (default: {defaults.body_timeout:g})",
    )
    group.add_argument(
        "--drain-timeout",
        type=float,
        metavar="S",
        help=f"seconds for running requests at the end (default: {defaults.drain_timeout:g})",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers and logs")
    group.add_argument(
        "--served-model-name", action="append", metavar="NAME", help="a further model name to accept (repeatable)"
    )
    group.add_argument(
        "--reasoning-alias", metavar="FIELD", help='send the trace under this name too, such as "reasoning_content"'
    )
    group.add_argument("--log-level", choices=LOG_LEVELS, help="(default: info)")
    group.add_argument("--log-format", choices=LOG_FORMATS, help="lines of text, or of JSON (default: text)")


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    environment.apply(parser, args, os.environ)
    model = args.model or "demo"
    settings, options = settings_of(args, model), engine_options(args)
    with ending_the_process():
        from mdinfer.server.serving import serve

    return serve(
        model, options, settings, log_level=args.log_level or "info", log_format=args.log_format or "text"
    )  # fmt: skip


def settings_of(args: argparse.Namespace, model: str) -> Settings:
    """Raises ConfigError."""
    names = ("host", "port", "max_images", "request_timeout", "body_timeout", "drain_timeout", "reasoning_alias")
    stated: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.max_body_mb is not None:
        if not 0 < args.max_body_mb <= MAX_BODY_MB:
            raise ConfigError(f"--max-body-mb is {args.max_body_mb:g}, it must be above 0 and at most {MAX_BODY_MB}")
        stated["max_body_bytes"] = round(args.max_body_mb * (1 << 20))
    keys = [*(args.api_key or ()), *(() if args.api_key_file is None else keys_of(args.api_key_file))]
    return Settings(
        api_keys=tuple(dict.fromkeys(keys)),
        insecure=args.insecure,
        model_names=model_names(model, args.served_model_name or []),
        cors_origins=tuple(args.cors_origin or ()),
        **stated,
    )


def keys_of(path: str) -> list[str]:
    """The keys in a file. Raises ConfigError, also for a file without any: it was meant to protect."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text file"
        raise ConfigError(f"--api-key-file {path or '(empty)'} cannot be read: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key: write one a line")
    return keys


def model_names(model: str, more: list[str]) -> tuple[str, ...]:
    """The names of the published model, the model's own unless it is a path, and what the operator adds."""
    own = [] if os.path.exists(model) or model.startswith((".", "/", "~")) else [model]
    return tuple(dict.fromkeys([*more, *DEFAULT_MODEL_NAMES, *own]))
