"""What stands between README's markers, by name: tables and sentences made from a folder of result files."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import goals, memory
from benchmarks.report import markdown, median, read_result
from benchmarks.roofline import chosen_config

Result = dict[str, Any]

_WIDTH = 120
_MEMORY = "--experts bf16 fp8 int4 --markdown"


def place(results: Iterable[Result], *, threads: bool = True) -> str:
    """Device, threads, torch and commit; where files differ in one of them, each of its values."""
    found: dict[str, dict[str, None]] = {}
    for where in (result["environment"] for result in results):
        commit, plus, changes = str(where["commit"]).partition("+")
        told = {
            "device": where["device"],
            "threads": f"{where['threads']} thread{'s' * (where['threads'] > 1)}",
            "torch": f"torch {where['torch']}",
            "commit": f"commit {commit[:7]}{plus}{changes}",
        }
        for key, value in told.items():
            found.setdefault(key, {})[value] = None
    if not threads:
        del found["threads"]
    return ", ".join(" and ".join(values) for values in found.values())


def experts(folder: Path) -> str:
    result = _read(folder, "experts-cpu")
    first, *others = result["models"]
    records = {(r["name"], r["batch"]): r for r in result["results"]}
    batches = sorted({batch for _, batch in records})
    rows = [
        [f"{what}, batch {batch}", *(f"{records[name, batch][figure]:.2f}" for name in others)]
        for what, figure in (("decoding", "decode_ratio"), ("prefill", "prefill_ratio"))
        for batch in batches
    ]
    rounds = len(result["results"][0]["repeats"]["decode_ms"])
    return _joined(
        f"{place([result])}; {result['parameters'] / 1e6:.0f} M random weights, prompts of {result['prompt']} tokens, "
        f"medians of {rounds} rounds that went step by step side by side:",
        markdown([f"times as fast as {first}", *others], rows),
    )


def full_size(folder: Path) -> str:
    result, steps = _read(folder, "full-size-cpu"), _read(folder, "cpu-full-bfloat16")
    rows, generated = [], set()
    for r in result["results"]:
        if "error" in r:
            rows.append([r["experts"], r["error"], *"---"])
            continue
        sizes = (r["weight_bytes"] / 2**30, r["peak_bytes"] / 2**30)
        rows.append([r["experts"], *map(_short, (*sizes, r["ready_s"], r["tokens_per_s"]))])
        generated.add(str(r["generated"]))
    [step] = [r for r in steps["results"] if r["batch"] == 1]
    return _joined(
        f"{place([result])}; {result['checkpoint_bytes'] / 1e9:.1f} GB of random bfloat16 weights on disk; seconds are "
        "from the start of the process:",
        markdown(["experts", "weights GiB", "peak memory GiB", "s until ready", "tokens/s of an answer"], rows),
        f"Those are answers of {' and '.join(sorted(generated))} tokens through the engine, their prefill included. "
        f"Decoding steps alone took {_short(step['decode_ms'])} ms, {_short(step['decode_tokens_per_s'])} tokens/s, in "
        f"{steps['precision']} after a prompt of {steps['prompt']} tokens, in another run ({place([steps])}; `python "
        f"-m benchmarks.decode --random full --dtype {steps['precision']}`).",
    )


def quality(folder: Path) -> str:
    rows = []
    for record in _read(folder, "demo-quality")["results"]:
        [whole] = [group for group in record["groups"] if group["group"] == "all"]
        rows.append([record["precision"], f"{whole['share']:.3f}", *(whole[key] for key in ("count", "lost", "won"))])
    return markdown(["", "right", "of", f"worse than {rows[0][0]}", "better"], rows)


def decode(folder: Path) -> str:
    files = [_read(folder, f"cpu-200m-{name}") for name in ("float32", "bfloat16", "64x8-float32")]
    *dtypes, many = ({r["name"]: r for r in result["results"]} for result in files)
    columns, rows = [""], [[name] for name in dtypes[0]]
    for result, records in zip(files, dtypes, strict=False):
        columns += [f"{result['precision']}: prefill ms", "decode ms/step", "tokens/s"]
        for row in rows:
            row += [_short(records[row[0]][key]) for key in ("prefill_ms", "decode_ms", "decode_tokens_per_s")]
    single, *_, batch, plain = dtypes[0]
    names = [result["precision"] for result in files[:2]]
    ahead = [
        " and ".join(f"{r[plain][key] / r[single][key]:.2f}" for key in ("decode_ms", "prefill_ms")) for r in dtypes
    ]
    shared = [f"{r[batch]['decode_tokens_per_s'] / r[single]['decode_tokens_per_s']:.2f}" for r in (*dtypes, many)]
    size = dtypes[0][batch]["batch"]
    return _joined(
        f"{place(files)}:",
        markdown(columns, rows),
        f"One request decodes and prefills {ahead[0]} times as fast as plain torch in {names[0]} (the default here), "
        f"{ahead[1]} times in {names[1]}; below 1 plain torch is ahead. {size} requests together give {shared[0]} and "
        f"{shared[1]} times the tokens/s of one; with the published 64 experts, 8 a token, in as many parameters "
        f"(`--random 200m-64x8`) {shared[2]} times in {files[2]['precision']}.",
    )


def images(folder: Path) -> str:
    result = _read(folder, "images-cpu")
    records = {(r["kind"], r["resize"]): r for r in result["results"] if r["threads"] == 1}
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in records):
        drawn, form, size = kind.split("-")
        here, device = records[kind, "cpu"], records[kind, "device"]
        rates = (r["images_per_s_per_core"] for r in (here, device))
        name = f"{drawn}, {form.upper()}, {size.replace('x', ' x ')}"
        rows.append([name, *map(_short, (here["decode_ms"], here["resize_ms"], *rates))])
    return _joined(
        f"{place([result])}, Pillow {result['environment']['pillow']}:",
        markdown(["picture", "decode ms", "resize ms", "pictures/s and core", 'with `resize="device"`'], rows),
    )


def goals_on_a_gpu(folder: Path) -> str:
    rows, files = goals.rows(folder)
    models = " and ".join(dict.fromkeys(str(result["model"]) for result in files))
    told = (
        f"Measured on {place(files, threads=False)}; model: {models}."
        if files
        else "None of this has been measured yet."
    )
    return _joined(markdown(["", "goal", "floor", "Kestrel", "measured"], rows), told)


def demo_speed(folder: Path) -> str:
    start, load = _read(folder, "demo-start-cpu"), _read(folder, "demo-throughput-cpu")
    seconds, speed = (median([r[key] for r in start["rounds"]]) for key in ("first_answer_s", "tokens_per_s"))
    return _joined(
        f"`mdinfer serve` gives its first answer {seconds:.1f} s after the command, and one answer alone comes at "
        f"{speed:.0f} tokens/s (`python -m benchmarks.start`; {place([start], threads=False)}). {load['requests']} "
        f"mixed requests together are {load['ratio']:.1f} times as many a second as one at a time, and later questions "
        f"about a picture file have their first token {load['repeats']['ratio']:.1f} times as fast as the first one "
        f"(`python -m benchmarks.throughput --device cpu --load mixed`; {place([load], threads=False)})."
    )


def overhead(folder: Path) -> str:
    result = _read(folder, "server-overhead")
    streams = result["streams"]
    return _joined(
        f"A text request takes {result['round_trips']['text request']['p50_ms']:.2f} ms at the median, "
        f"{result['added_p50_ms']:.2f} ms more than a bare ASGI application that answers with a constant; "
        f"{streams['streams']} streams cost one core-second for {round(streams['tokens_per_core_s'], -2):,.0f} tokens "
        f"({place([result], threads=False)})."
    )


def soak(folder: Path) -> str:
    result = _read(folder, "soak-cpu")
    ended, samples = result["outcomes"], result["samples"]
    middle, last = (sample["resident_mib"] for sample in (samples[len(samples) // 2], samples[-1]))
    lost = "; ".join(result["faults"]) or "no page and no request was lost"
    return _joined(
        f"{result['clients']} clients asked the demo for {result['minutes']:g} minutes, some of whom left or set short "
        f"limits (`python -m benchmarks.soak`; {place([result], threads=False)}): {ended['finished']:,} requests "
        f"finished, {ended['RequestCancelledError']:,} were cancelled, {ended['DeadlineError']:,} passed their "
        f"deadline; {lost}. The process held {middle:.0f} MiB after half of the time and {last:.0f} at the end."
    )


def memory_of_cards(_: Path) -> str:
    """Computed, so no file is needed."""
    options = memory.parse(_MEMORY.split())
    columns, rows = memory.rows(memory.measure(chosen_config(options), options))
    return _joined(f"`python -m benchmarks.memory {_MEMORY}`:", markdown(columns, rows))


BLOCKS: dict[str, Callable[[Path], str]] = {
    "experts": experts,
    "full size": full_size,
    "quality": quality,
    "decode": decode,
    "demo speed": demo_speed,
    "images": images,
    "goals": goals_on_a_gpu,
    "overhead": overhead,
    "soak": soak,
    "memory": memory_of_cards,
}
"""Each takes the folder of result files. Raises ResultError."""


def _read(folder: Path, name: str) -> Result:
    return read_result(folder / f"{name}.json")


def _joined(*parts: str) -> str:
    """Paragraphs, of which tables stay as they are."""
    return "\n\n".join(part if part.startswith("|") else _filled(part) for part in parts)


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
