"""What `check` and `speed` share: which cases, on what device, within what time."""

from __future__ import annotations

import argparse

import torch

from benchmarks.kernels.case import Case
from benchmarks.kernels.catalogue import FAMILIES, all_cases


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.kernels.{prog}", description=description)
    made.add_argument("--family", action="append", choices=sorted(FAMILIES), help="only these kernels; repeatable")
    made.add_argument("--case", action="append", help="only cases whose name contains this; repeatable")
    made.add_argument("--device", default="cuda", help="on a CPU, kernels run under TRITON_INTERPRET=1")
    made.add_argument("--budget", type=float, default=1e9, metavar="S", help="leave out what is not begun by then")
    made.add_argument("--json", metavar="FILE", help="write everything found")
    return made


def chosen(options: argparse.Namespace) -> list[Case]:
    return [
        case
        for case in all_cases(options.family)
        if not options.case or any(part in case.name for part in options.case)
    ]


def named(name: str) -> Case:
    return next(case for case in all_cases() if case.name == name)


def on_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"
