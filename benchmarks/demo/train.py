"""Train the demo, or go on training it.

    python -m benchmarks.demo.train RUN --until 6000 --decay 1500

RUN is a directory: it keeps tokenizer.json, state.pt (weights in float32, optimisers, random state, step) and
log.jsonl. The learning rate is constant from the end of the warm-up until `--decay` steps before `--until`, then falls
to nothing; to stop early, or to train longer, start again from the state with other numbers. An interrupt saves.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from benchmarks.demo.batches import GROUNDS, Batch, BatchMaker, batches
from benchmarks.demo.forward import CellHeads
from benchmarks.demo.losses import batch_losses
from benchmarks.demo.optimiser import optimisers
from benchmarks.demo.sizes import demo_config
from benchmarks.demo.start import fresh_model
from benchmarks.demo.tokens import build_tokenizer
from benchmarks.demo.words import COLOURS, KINDS

_WARM_UP = 150
_CLIP = 1.0


class Run:
    """What training changes, and its files."""

    def __init__(self, directory: Path, device: torch.device, *, muon_lr: float, adam_lr: float, seed: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._state = directory / "state.pt"
        words = directory / "tokenizer.json"
        if not words.exists():
            build_tokenizer(seed).save(str(words))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(words))
        self.config = demo_config(self.tokenizer)
        self.model = fresh_model(self.config, seed).to(device)
        self.heads = CellHeads(self.config.text.dim, len(KINDS), len(COLOURS), len(GROUNDS)).to(device)
        self.optimisers = optimisers(self.model, self.heads, muon_lr=muon_lr, adam_lr=adam_lr)
        self.step = 0
        if self._state.exists():
            state = torch.load(self._state, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            for optimiser, held in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(held)
            torch.set_rng_state(state["random"].cpu())
            self.step = state["step"]
        for optimiser, lr in zip(self.optimisers, (muon_lr, adam_lr), strict=True):
            for group in optimiser.param_groups:
                group["peak"] = lr

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "random": torch.get_rng_state(),
            "step": self.step,
        }
        torch.save(state, self._state.with_suffix(".new"))
        os.replace(self._state.with_suffix(".new"), self._state)


def rate(step: int, until: int, decay: int) -> float:
    """Share of the peak learning rate."""
    return min(1.0, (step + 1) / _WARM_UP, max(0.0, (until - step) / max(1, decay)))


@dataclass(frozen=True, slots=True)
class Team:
    """Processes that each compute a part of every batch on a core of their own and add up gradients."""

    rank: int = 0
    size: int = 1

    def sum(self, values: torch.Tensor) -> None:
        if self.size > 1:
            distributed.all_reduce(values)


def train(run: Run, arguments: argparse.Namespace, device: torch.device, team: Team) -> None:
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: stop.append(n))
    source = _source(run, arguments, team)
    log = Log(arguments.run / "log.jsonl", run.step)
    parameters = [p for group in (g for o in run.optimisers for g in o.param_groups) for p in group["params"]]
    began = time.perf_counter()
    while run.step < arguments.until:
        batch = next(source)
        losses = batch_losses(run.model, run.heads, batch, device, run.step)
        torch.autograd.backward(losses.total)
        share = rate(run.step, arguments.until, arguments.decay)
        if arguments.minutes:
            share = min(share, 1 - (time.perf_counter() - began) / (60 * arguments.minutes))
        share, stopping = _share_gradients(parameters, team, share, stop=bool(stop) or share <= 0)
        norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        for optimiser in run.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        run.step += 1
        if team.rank == 0:
            positions = 0 if batch.rows is None else batch.rows.tokens.size * team.size
            log.add({**losses.parts, "norm": norm}, positions)
            if run.step % arguments.log_every == 0 or run.step == arguments.until:
                log.write(run.step, rate=round(share, 3))
            if run.step % arguments.save_every == 0 or stopping or run.step == arguments.until:
                run.save()
        if stopping:
            break


class Log:
    """Means of what was measured since the last record, printed and appended to a file."""

    def __init__(self, path: Path, step: int) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115  # closed with the process
        self._restart(step)

    def add(self, parts: Mapping[str, torch.Tensor], positions: int) -> None:
        self._positions += positions
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(part)

    def write(self, step: int, **more: float) -> None:
        steps, seconds = step - self._since, time.perf_counter() - self._began
        means = {name: round(value / steps, 4) for name, value in self._sums.items()}
        speed = {"s/step": round(seconds / steps, 3), "positions/s": round(self._positions / seconds)}
        record = {"step": step, **means, **more, **speed}
        print(record, flush=True)
        self._file.write(json.dumps(record) + "\n")
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._sums: dict[str, float] = {}
        self._positions, self._since, self._began = 0, step, time.perf_counter()


def _source(run: Run, arguments: argparse.Namespace, team: Team) -> Iterator[Batch]:
    """This process's batches from the run's step on: of a process beside it, or, in a team, made by itself."""
    mix, seed = json.loads(arguments.mix), arguments.seed
    if team.size == 1:
        yield from batches(run.tokenizer, run.config, mix, seed=seed, first=run.step, sight=arguments.sight)
    maker = BatchMaker(run.tokenizer, run.config, mix, team.size)
    while True:
        make = maker.sight if run.step < arguments.sight else maker.batch
        yield make(seed, run.step * team.size + team.rank)


def _share_gradients(
    parameters: list[torch.nn.Parameter], team: Team, share: float, *, stop: bool
) -> tuple[float, bool]:
    """Replace gradients by the team's mean; return the mean share of the learning rate and whether any stops."""
    if team.size == 1:
        return max(0.0, share), stop
    for p in parameters:
        if p.grad is None:  # what no part of this process's batch used
            p.grad = torch.zeros_like(p)
    flat = torch.cat(
        [*(p.grad.flatten() for p in parameters if p.grad is not None), torch.tensor([share, float(stop)])]
    )
    team.sum(flat)
    at = 0
    for p in parameters:
        assert p.grad is not None
        p.grad.copy_(flat[at : at + p.numel()].view_as(p)).div_(team.size)
        at += p.numel()
    return max(0.0, float(flat[-2]) / team.size), bool(flat[-1] > 0)


def _work(rank: int, arguments: argparse.Namespace) -> None:
    device, team = torch.device(arguments.device), Team(rank, arguments.processes)
    if team.size > 1:
        torch.set_num_threads(1)
        place = f"file://{(arguments.run / 'team').resolve()}"
        distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=team.size)
    run = Run(arguments.run, device, muon_lr=arguments.muon_lr, adam_lr=arguments.adam_lr, seed=arguments.seed)
    train(run, arguments, device, team)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--until", type=int, default=6000, help="step to stop at")
    parser.add_argument("--decay", type=int, default=1500, help="steps over which the learning rate falls at the end")
    parser.add_argument("--minutes", type=float, help="let the learning rate fall from now on to nothing in so long")
    parser.add_argument("--sight", type=int, default=600, help="steps at the start that train only what is seen")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mix", default="{}", help='JSON: factors on the shares of questions, as {"name": 2}')
    parser.add_argument(
        "--processes", type=int, default=1, help="that share each batch, one thread each: for a CPU that others use too"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=200)
    arguments = parser.parse_args(argv)
    arguments.run.mkdir(parents=True, exist_ok=True)
    if arguments.processes == 1:
        _work(0, arguments)
    else:
        (arguments.run / "team").unlink(missing_ok=True)
        spawn(_work, (arguments,), nprocs=arguments.processes)  # type: ignore[no-untyped-call]  # torch types it not


if __name__ == "__main__":
    main()
