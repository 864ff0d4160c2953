"""Every option from the environment too: MDINFER_ and its name in capitals, such as MDINFER_MAX_IMAGES.

The command line wins over the environment. An option that may be repeated takes a list separated by commas.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from mdinfer.errors import ConfigError

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def document(parser: argparse.ArgumentParser) -> None:
    """Name the variable of each option in its help."""
    for action in _options(parser):
        action.help = f"{action.help} [{variable(action)}]"


def apply(parser: argparse.ArgumentParser, args: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Fill in what the command line left out (None, or False for a switch). Raises ConfigError."""
    for action in _options(parser):
        text, stated = environment.get(variable(action)), getattr(args, action.dest)
        if text and (stated is None or stated is False):  # 0 is stated
            setattr(args, action.dest, _value(action, text))


def variable(action: argparse.Action) -> str:
    return f"MDINFER_{action.dest.upper()}"


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.dest != "help")


def _value(action: argparse.Action, text: str) -> Any:
    if action.nargs == 0:
        if text.lower() not in (*_YES, *_NO):
            raise ConfigError(f"{variable(action)} is {text!r}, it must be 1 or 0")
        return text.lower() in _YES
    if isinstance(action, argparse._AppendAction):
        if parts := [part.strip() for part in text.split(",") if part.strip()]:
            return parts
        raise ConfigError(f"{variable(action)} is {text!r}, which lists nothing: set it to something, or not at all")
    try:
        value = action.type(text) if callable(action.type) else text
    except ValueError:
        kind = "a whole number" if action.type is int else "a number"
        raise ConfigError(f"{variable(action)} is {text!r}, it must be {kind}") from None
    if action.choices is not None and value not in action.choices:
        raise ConfigError(f"{variable(action)} is {text!r}, it must be one of {', '.join(action.choices)}")
    return value
