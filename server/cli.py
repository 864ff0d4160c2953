"""The `mdinfer` command: which subcommands there are, and how any of them ends.

Importing this module imports neither torch nor the server, so that --help is quick; each subcommand imports
what it needs when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mdinfer import __version__
from mdinfer.errors import ConfigError, MdinferError, RequestError
from mdinfer.server.commands import chat, doctor, serve, skills

EPILOG = """\
examples:
  mdinfer doctor                                   what this machine can run, and what is missing
  mdinfer query photo.jpg "What is this?"          ask about an image
  mdinfer caption photo.jpg --length short
  mdinfer detect photo.jpg "car" --draw cars.png
  mdinfer chat photo.jpg                           a conversation in the terminal
  mdinfer serve moondream/moondream3-preview       an OpenAI-compatible server on port 2020

--model is "demo" (small, untrained, needs no download), a directory, or a Hugging Face repository id.
exit status: 0 done, 1 failed, 2 bad input or options, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status. argparse's own exits (--help, a typo) raise SystemExit."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone; let the interpreter's last flush succeed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MdinferError as error:
        print(f"mdinfer: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError | ConfigError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mdinfer",
        description="Moondream 3 on your own hardware.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mdinfer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (serve, skills, chat, doctor):
        module.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
