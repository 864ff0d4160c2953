"""The `mdinfer` command: which subcommands there are, and how any of them ends.

Importing this module imports neither torch nor the server, so that --help is quick; each subcommand imports
what it needs when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mdinfer import __version__
from mdinfer.errors import ConfigError, MdinferError, RequestError
from mdinfer.server.commands import chat, doctor, interrupt, serve, skills, streams

EPILOG = """\
examples:
  mdinfer doctor                                   what this machine can run, and what is missing
  mdinfer query photo.jpg "What is this?"          ask about an image
  mdinfer caption photo.jpg --length short
  mdinfer detect photo.jpg "car" --draw cars.png
  mdinfer chat photo.jpg                           a conversation in the terminal
  mdinfer serve moondream/moondream3-preview       an OpenAI-compatible server on port 2020

--model is "demo" (small, needs no download), a directory, or a Hugging Face repository id.
exit status: 0 done, 1 failed, 2 bad input or options, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status. argparse's own exits (--help, a typo) raise SystemExit."""
    streams.prepare()
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return interrupt.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, and knows it
        return 1
    except OSError as error:  # nearly always the output, such as to a full disk
        streams.tell(f"mdinfer: error: {error.filename or 'output'}: {error.strerror or error}")
        return 1
    except MdinferError as error:
        streams.tell(f"mdinfer: error: {error}")
        return 2 if isinstance(error, RequestError | ConfigError) else 1
    finally:
        streams.settle()


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
        status: int = args.run(args)
    except SystemExit:
        sys.stdout.flush()  # the help text, which may be what cannot be written
        raise
    sys.stdout.flush()
    return status


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
