"""How long decoding takes: ms and tokens/s by batch size, without the engine's threads around it; and the prefill.

    python -m benchmarks.decode --checkpoint PATH --device cpu
    python -m benchmarks.decode --random 200m --device cpu --dtype float32 --batch 1 4 --plain
    python -m benchmarks.decode --random full --device cuda --experts fp8 --kv fp8 --batch 1 4 16 64 --prompt 800

On a CPU all contenders take turns step by step, so that a noisy machine is equally unkind to each; ratios are the
figures to trust. On a GPU steps are recorded, and each is launched before the one before it is read, as in the engine.
`--plain` adds a straightforward torch decoder (`benchmarks/plain.py`) on the same weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import subject
from benchmarks.batch import Batch
from benchmarks.costs import distinct_experts
from benchmarks.plain import PlainDecoder, plain_weights
from benchmarks.report import median, table, write_json
from benchmarks.subject import Subject, routings
from benchmarks.vision import crops_of, floor_cells, measure_vision
from mdinfer.memory import format_bytes

_WARM_UP = 2  # decoding steps of the first round


class Contender:
    """One line of the report. `begin` makes a step that prefills, then decodes, each time it is called."""

    def __init__(self, name: str, batch: int, begin: Callable[[], Callable[[], None]]) -> None:
        self.name, self.batch, self.begin = name, batch, begin
        self.prefill: list[float] = []
        self.decode: list[list[float]] = []  # by round

    def record(self, prompt: int, floor: float | None) -> dict[str, Any]:
        """Medians over rounds and steps."""
        steps = [ms for turn in self.decode for ms in turn]
        return {
            "name": self.name,
            "batch": self.batch,
            "prefill_ms": median(self.prefill),
            "prefill_best_ms": min(self.prefill),
            "prefill_tokens_per_s": 1e3 * self.batch * prompt / median(self.prefill),
            "decode_ms": median(steps),
            "decode_best_ms": min(steps),
            "decode_tokens_per_s": 1e3 * self.batch / median(steps),
            "floor_ms": floor,
            "repeats": {"prefill_ms": self.prefill, "decode_ms": [median(turn) for turn in self.decode]},
        }


def contenders(on: Subject, options: argparse.Namespace) -> list[Contender]:
    tokens = max(options.tokens, _WARM_UP) + 2
    found = []
    for size in options.batch:
        batch = Batch(
            on.model,
            size,
            options.prompt,
            tokens,
            kv=options.kv,
            graphs=options.graphs,
            two_streams=options.two_streams,
        )
        found.append(Contender(f"mdinfer, batch {size}", size, steps_of(batch, options.prompt, ahead=options.ahead)))
    if options.plain:
        found.append(Contender("plain torch", 1, lambda: _plain(on, options.prompt, tokens)))
    return found


def steps_of(batch: Batch, prompt: int, *, ahead: bool) -> Callable[[], Callable[[], None]]:
    used = False

    def begin() -> Callable[[], None]:
        nonlocal used
        if used:
            batch.again(prompt)
        used, first = True, True

        def step() -> None:
            nonlocal first
            if first or not ahead:
                batch.step()
            else:
                batch.step_ahead()
            first = False

        return step

    return begin


def _plain(on: Subject, prompt: int, tokens: int) -> Callable[[], None]:
    decoder = PlainDecoder(on.model.config, plain_weights(on.model), prompt + tokens)
    draw = np.random.default_rng(0)
    pending = torch.tensor([0, *draw.integers(16, on.model.config.text.vocab_size, prompt - 1).tolist()])

    def step() -> None:
        nonlocal pending
        pending = decoder.forward(pending).argmax()[None]

    return step


def measure(on: Subject, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a contender."""
    found = contenders(on, options)
    alternate(found, options, on.synchronize)
    floors, middle = on.floors, options.prompt + options.tokens // 2
    return [
        contender.record(options.prompt, floors.decode(contender.batch, middle, on.precision) if floors else None)
        for contender in found
    ]


def alternate(found: Sequence[Contender], options: argparse.Namespace, synchronize: Callable[[], None]) -> None:
    """Have contenders take turns, `options.rounds` times after a round that warms up."""
    for turn in range(options.rounds + 1):
        steps = [contender.begin() for contender in found]
        for contender, step in zip(found, steps, strict=True):
            synchronize()
            ms = _timed(step)
            if turn:
                contender.prefill.append(ms)
                contender.decode.append([])
        count = options.tokens if turn else _WARM_UP
        if options.ahead:
            order = [(contender, step) for contender, step in zip(found, steps, strict=True) for _ in range(count)]
        else:
            order = [pair for _ in range(count) for pair in zip(found, steps, strict=True)]
        before = None
        for contender, step in order:
            if contender is not before and options.ahead:
                step()  # after it one is always under way
            before = contender
            ms = _timed(step)
            if turn:
                contender.decode[-1].append(ms)


def _timed(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def measure_spread(on: Subject, size: int, kv: str) -> dict[str, Any]:
    """Distinct experts that a layer touches in a decoding step, and how many an even spread would."""
    moe, batch = on.model.config.text.moe, Batch(on.model, size, 8, 3, kv=kv)
    batch.step()
    with routings() as found:
        batch.step()
    expected = distinct_experts(size, moe.num_experts, moe.experts_per_token)
    return {"batch": size, "experts": sum(found) / max(1, len(found)), "evenly": expected}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options, parser = _parse(argv)
    on = subject.load("decode", options, parser)
    for name in ("graphs", "ahead"):
        if getattr(options, name) is None:
            setattr(options, name, on.model.device.type == "cuda")
    given = {name: getattr(options, name) for name in ("prompt", "tokens", "graphs", "ahead")}
    result: dict[str, Any] = {**on.header, **given}
    if not options.no_vision:
        [seen] = measure_vision(on, [crops_of(850, 600, on)], 1, options.rounds)
        result["vision"] = seen
        print(f"vision, {seen['crops']} crops: {seen['vision_ms']:.1f} ms\n")
    result["spread"] = [measure_spread(on, size, options.kv) for size in options.batch]
    result["results"] = measure(on, options)
    _show(result)
    if on.model.device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated(on.model.device)
        print(f"\n{format_bytes(result['peak_bytes'])} of the GPU's memory at the peak")
    write_json(options.json, result)
    return result


def _show(result: dict[str, Any]) -> None:
    first = result["results"][0]
    columns = ["", "prefill ms", "best", "tokens/s", "decode ms", "best", "tokens/s", f"x {first['name']}"]
    rows = [
        [
            r["name"],
            r["prefill_ms"],
            r["prefill_best_ms"],
            r["prefill_tokens_per_s"],
            r["decode_ms"],
            r["decode_best_ms"],
            r["decode_tokens_per_s"],
            r["decode_tokens_per_s"] / first["decode_tokens_per_s"],
            *floor_cells(r["floor_ms"], r["decode_ms"]),
        ]
        for r in result["results"]
    ]
    print(table([*columns, "floor ms", "of it"], rows))
    spread = ", ".join(f"{s['batch']}: {s['experts']:.1f} ({s['evenly']:.1f})" for s in result["spread"])
    print(f"experts that a layer's decoding step touches by batch (if spread evenly): {spread}")


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subject.add_options(parser, rounds=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], metavar="N")
    parser.add_argument("--prompt", type=int, default=200, help="positions of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to decode after each prefill")
    parser.add_argument("--plain", action="store_true", help="compare with a plain torch decoder (CPU, no fp8)")
    parser.add_argument("--no-vision", action="store_true")
    for name, what in (
        ("graphs", "run decoding steps on fixed buffers"),
        ("ahead", "launch a step before the last is read"),
    ):
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, help=f"{what}; on a GPU so unless denied"
        )
    options = parser.parse_args(argv)
    if options.plain and not {options.experts, options.linears} <= {"auto", "bf16"}:
        parser.error("--plain has no quantised weights")
    return options, parser


if __name__ == "__main__":
    main()
