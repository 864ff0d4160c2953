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
from pathlib import Path
from typing import Any

import tokenizers
import torch

from benchmarks.demo.batches import batches
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
        self.heads = CellHeads(self.config.text.dim, len(KINDS), len(COLOURS)).to(device)
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


def train(run: Run, arguments: argparse.Namespace, device: torch.device) -> None:
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: stop.append(n))
    mix = json.loads(arguments.mix)
    source = batches(run.tokenizer, run.config, mix, seed=arguments.seed, first=run.step)
    log = open(arguments.run / "log.jsonl", "a", buffering=1)  # noqa: SIM115  # closed with the process
    sums: dict[str, torch.Tensor] = {}
    began, since = time.perf_counter(), run.step
    parameters = [p for group in (g for o in run.optimisers for g in o.param_groups) for p in group["params"]]
    while run.step < arguments.until and not stop:
        batch = next(source)
        losses = batch_losses(run.model, run.heads, batch, device, run.step)
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        share = rate(run.step, arguments.until, arguments.decay)
        for optimiser in run.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        run.step += 1
        for name, part in {**losses.parts, "norm": norm}.items():
            sums[name] = sums.get(name, torch.zeros(())) + part.cpu()
        if run.step % arguments.log_every == 0 or run.step == arguments.until:
            seconds = time.perf_counter() - began
            tokens = batch.rows.tokens.size
            means = {name: round(float(value) / (run.step - since), 4) for name, value in sums.items()}
            record: dict[str, Any] = {
                "step": run.step,
                **means,
                "rate": round(share, 3),
                "s/step": round(seconds / (run.step - since), 3),
                "tokens/s": round(tokens * (run.step - since) / seconds),
            }
            print(record, flush=True)
            log.write(json.dumps(record) + "\n")
            sums, began, since = {}, time.perf_counter(), run.step
        if run.step % arguments.save_every == 0:
            run.save()
    run.save()
    source.close()  # type: ignore[attr-defined]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--until", type=int, default=6000, help="step to stop at")
    parser.add_argument("--decay", type=int, default=1500, help="steps over which the learning rate falls at the end")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mix", default="{}", help='JSON: factors on the shares of questions, as {"name": 2}')
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=200)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    run = Run(arguments.run, device, muon_lr=arguments.muon_lr, adam_lr=arguments.adam_lr, seed=arguments.seed)
    train(run, arguments, device)


if __name__ == "__main__":
    main()
