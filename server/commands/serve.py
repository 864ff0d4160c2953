"""`mdinfer serve`: the options of the server. The serving itself is `serving.py`."""

from __future__ import annotations

import argparse
import os

from mdinfer.errors import ConfigError
from mdinfer.server.commands.interrupt import ending_the_process
from mdinfer.server.commands.loading import engine_options
from mdinfer.server.commands.options import Commands, add_engine_options
from mdinfer.server.settings import DEFAULT_MODEL_NAMES, Settings

MAX_BODY_MB = 1 << 20

EPILOG = """\
examples:
  mdinfer serve
  mdinfer serve moondream/moondream3-preview --api-key secret --host 0.0.0.0
  mdinfer serve ./checkpoint --port 8000 --served-model-name my-model

Without a key the server binds this machine only; --insecure overrules that."""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="an OpenAI-compatible HTTP server",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Settings()
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="demo",
        help='"demo", a directory or a repository id (default: demo)',
    )
    parser.add_argument("--host", default=defaults.host, help="address to bind (default: %(default)s)")
    parser.add_argument("--port", type=int, default=defaults.port, help="0 picks a free one (default: %(default)s)")
    parser.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="a key that clients must send (repeatable; also from the environment variable MDINFER_API_KEY)",
    )
    parser.add_argument("--insecure", action="store_true", help="serve other machines without a key")
    parser.add_argument(
        "--served-model-name",
        action="append",
        metavar="NAME",
        help="a further model name to accept (repeatable)",
    )
    parser.add_argument("--max-body-mb", type=float, metavar="MB", help="largest request body (default: 64)")
    parser.add_argument("--max-images", type=int, metavar="N", help="most images in a request (default: 32)")
    parser.add_argument("--max-queue", type=int, metavar="N", help="requests that may wait (default: 1024)")
    parser.add_argument(
        "--cors-origin", action="append", metavar="ORIGIN", help="a web origin that may call (repeatable)"
    )
    parser.add_argument("--request-timeout", type=float, metavar="S", help="seconds a request may take")
    parser.add_argument(
        "--drain-timeout",
        type=float,
        metavar="S",
        help="seconds for running requests at the end (default: 30)",
    )
    parser.add_argument(
        "--reasoning-alias",
        metavar="FIELD",
        help='send the trace under this name too, such as "reasoning_content"',
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="(default: %(default)s)",
    )
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    settings, options = settings_of(args), engine_options(args)
    with ending_the_process():
        from mdinfer.server.serving import serve

    return serve(args.model, options, settings, log_level=args.log_level)


def settings_of(args: argparse.Namespace) -> Settings:
    """Raises ConfigError."""
    stated = {
        name: value
        for name in ("max_images", "request_timeout", "drain_timeout", "reasoning_alias")
        if (value := getattr(args, name)) is not None
    }
    if args.max_body_mb is not None:
        if not 0 < args.max_body_mb <= MAX_BODY_MB:
            raise ConfigError(f"--max-body-mb is {args.max_body_mb:g}, it must be above 0 and at most {MAX_BODY_MB}")
        stated["max_body_bytes"] = round(args.max_body_mb * (1 << 20))
    keys = args.api_key or list(filter(None, [os.environ.get("MDINFER_API_KEY")]))
    return Settings(
        host=args.host,
        port=args.port,
        api_keys=tuple(keys),
        insecure=args.insecure,
        model_names=model_names(args.model, args.served_model_name or []),
        cors_origins=tuple(args.cors_origin or ()),
        **stated,
    )


def model_names(model: str, more: list[str]) -> tuple[str, ...]:
    """The names of the published model, the model's own unless it is a path, and what the operator adds."""
    own = [] if os.path.exists(model) or model.startswith((".", "/", "~")) else [model]
    return tuple(dict.fromkeys([*more, *DEFAULT_MODEL_NAMES, *own]))
