"""`mdinfer doctor`: what this machine can run, and how to get what is missing."""

from __future__ import annotations

import argparse
import sys

from mdinfer.server.commands.interrupt import ending_the_process
from mdinfer.server.commands.options import Commands
from mdinfer.server.commands.terminal import show_json


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this machine can run, and what is missing",
        description="Versions, devices, memory, kernels; no network. Exit status 0: the demo can run.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with ending_the_process():
        from mdinfer.server.diagnosis import diagnose

        diagnosis = diagnose()
    if args.json:
        show_json(diagnosis.as_dict())
    else:
        print(diagnosis.as_text())
    sys.stdout.flush()
    return 0 if diagnosis.demo_can_run else 1
