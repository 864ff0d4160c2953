"""`mdinfer chat`: a conversation in the terminal, or one message with -m."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from mdinfer.errors import ConfigError, RequestError, RequestFailedError
from mdinfer.request import Chat
from mdinfer.server.commands import loading
from mdinfer.server.commands.options import (
    SAMPLING,
    Commands,
    add_engine_options,
    add_model_option,
    add_sampling_options,
    stated,
)
from mdinfer.server.commands.terminal import note, show, show_json, show_stream
from mdinfer.server.protocols import ServingEngine

HELP = "commands: /image PATH adds an image to the next message, /new starts over, /quit ends (also Ctrl-D)"


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "chat",
        help="a conversation in the terminal",
        epilog=f"reads messages from the terminal, or one a line from a pipe.\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="an image for the first message")
    parser.add_argument("-m", "--message", metavar="TEXT", help="send this one message and end")
    parser.add_argument("--system", metavar="TEXT", help="instructions that come before the conversation")
    parser.add_argument("--reasoning", action="store_true", help="think first; the trace goes to stderr")
    parser.add_argument("--json", action="store_true", help="with -m: print one JSON object")
    add_model_option(parser)
    add_sampling_options(parser)
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.json and args.message is None:
        raise ConfigError("--json needs -m: a conversation has no single answer")
    images = [loading.read_image(args.image)] if args.image else []
    with loading.loaded_engine(args) as engine:
        conversation = Conversation(engine, args, images)
        if args.message is not None:
            conversation.say(args.message)
            return 0
        return _talk(conversation)


class Conversation:
    """The messages so far, and the images that wait for the next one."""

    def __init__(self, engine: ServingEngine, args: argparse.Namespace, images: list[bytes]) -> None:
        self._engine, self._args = engine, args
        self._images = images
        self._messages: list[dict[str, Any]] = []
        self.restart()

    def restart(self) -> None:
        system = self._args.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def attach(self, path: str) -> None:
        self._images.append(loading.read_image(path))

    def say(self, text: str) -> None:
        """Send a message and print the reply. A message that fails is forgotten, its images are kept."""
        parts = [{"type": "image", "image": image} for image in self._images]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        chat = Chat(
            messages=[*self._messages, message],
            reasoning=self._args.reasoning,
            **stated(self._args, SAMPLING),
        )
        handle = self._engine.submit(chat)
        if self._args.json:
            result = handle.result()
            fields = {"content": result.text} | ({"reasoning": result.reasoning} if chat.reasoning else {})
            show_json({**fields, "finish_reason": result.finish_reason})
        else:
            result = show_stream(handle)
        self._messages += [message, {"role": "assistant", "content": result.text}]
        self._images = []


def _talk(conversation: Conversation) -> int:
    if sys.stdin.isatty():
        note(HELP)
    for line in _lines():
        command, _, rest = line.partition(" ")
        try:
            if command in ("/quit", "/exit"):
                return 0
            if command == "/new":
                conversation.restart()
            elif command == "/image":
                conversation.attach(rest.strip())
            elif command in ("/help", "/?"):
                note(HELP)
            else:
                conversation.say(line)
        except (RequestError, RequestFailedError) as error:
            if not sys.stdin.isatty():
                raise
            note(f"error: {error}")
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            show("\n")
            note("interrupted; Ctrl-C at the prompt ends the conversation")
    return 0


def _lines() -> Iterator[str]:
    """The user's messages: typed at a prompt, or read from a pipe; empty ones are skipped."""
    if not sys.stdin.isatty():
        yield from filter(None, (line.strip() for line in sys.stdin))
        return
    import readline  # noqa: F401  # gives input() its editing and history

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            show("\n")
            return
        except KeyboardInterrupt:
            show("\n")
            raise
        if line:
            yield line
