"""Requests per second of an engine and how long they wait, on a load shaped like ChartQA's, and mixed requests.

    python -m benchmarks.throughput --device cpu
    python -m benchmarks.throughput --load charts --random full --experts fp8 --kv fp8 --clients 1 4 16 64
    python -m benchmarks.throughput --load charts --checkpoint PATH --folder PICTURES --until-done

charts   so many clients ask one question after another (`benchmarks/charts.py`), each as soon as it has its answer.
         Times are from a question to its whole answer, decoding the picture and waiting for a place included. "clean"
         begins with nothing in the caches, so that only later questions about a picture find it there; "again" is the
         same load once more. Answers have as many tokens as --answers says, unless --until-done.
mixed    requests of all kinds one at a time and together (`benchmarks/mixed.py`): the ratio says what batching gives
"""

from __future__ import annotations

import argparse
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mdinfer
from benchmarks import mixed, peers, subject
from benchmarks.charts import Item, drawn, from_folder
from benchmarks.load_mix import endless
from benchmarks.report import median, table, write_json
from benchmarks.roofline import QUESTIONS_PER_PICTURE
from benchmarks.subject import Subject
from benchmarks.vision import crops_of
from mdinfer.options import EngineConfig
from mdinfer.result import Result

_CAP = 768  # tokens of an answer that ends by itself
_ROUNDS_APART = 1000  # seeds


def ask(engine: mdinfer.Engine, items: list[Item], clients: int, tokens: int, namespace: str | None) -> dict[str, Any]:
    """Have `clients` threads ask all questions: seconds, times of each, share of prompts found in the caches.

    namespace None: each question has one of its own, for those under way at the same time share a picture even where
    none is kept.
    """
    waiting, lock = iter(items), threading.Lock()
    taken: list[float] = []
    results: list[Result] = []
    faults: list[BaseException] = []

    def client() -> None:
        while not faults:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            start = time.perf_counter()
            try:
                space = uuid.uuid4().hex if namespace is None else namespace
                result = engine.submit(item.query(tokens), namespace=space).result()
            except BaseException as error:
                faults.append(error)
                return
            taken.append(1e3 * (time.perf_counter() - start))
            results.append(result)

    encoded = engine.stats().images_encoded
    threads = [threading.Thread(target=client) for _ in range(min(clients, len(items)))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if faults:
        raise faults[0]
    return {
        "seconds": seconds,
        "ms": taken,
        "found": sum(r.usage.cached_tokens for r in results) / sum(r.usage.prompt_tokens for r in results),
        "encoded": engine.stats().images_encoded - encoded,
        "tokens": sum(r.usage.completion_tokens for r in results),
    }


def measure_charts(engine: mdinfer.Engine, on: Subject, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Records of each length of answers and number of clients, clean and again. The first round warms up."""
    own = from_folder(options.folder) if options.folder else None
    for tokens in options.answers:
        for clients in options.clients:
            runs: dict[str, list[dict[str, Any]]] = {"clean": [], "again": []}
            count = max(options.least, options.each * clients)
            for turn in range(options.rounds + 1):
                seed = options.seed + turn * _ROUNDS_APART
                items = own or drawn(count, seed, _tokens_of(engine), engine.config.tokenizer.templates.query)
                namespace = f"{tokens} {clients} {turn}" if options.caches else None
                for found in runs.values():
                    run = ask(engine, items, clients, tokens, namespace)
                    if turn:
                        found.append(run)
            for state, found in runs.items():
                yield _record(on, tokens, clients, state, len(items), found)


def _tokens_of(engine: mdinfer.Engine) -> Any:
    tokenizer = engine._loaded.tokenizer
    return lambda text: len(tokenizer.encode(text))


def _record(
    on: Subject, tokens: int, clients: int, state: str, requests: int, runs: list[dict[str, Any]]
) -> dict[str, Any]:
    per_s = [requests / run["seconds"] for run in runs]
    times = sorted(ms for run in runs for ms in run["ms"])
    floor = None
    if on.floors and state == "clean":
        crops, seen = crops_of(850, 600, on), 1 - 1 / QUESTIONS_PER_PICTURE
        floor = 1e3 / on.floors.request(clients, tokens, on.precision, seen=seen, crops=crops)
    return {
        "name": f"{tokens} tokens, {clients} clients, {state}",
        "answers": tokens,
        "clients": clients,
        "state": state,
        "requests": requests,
        "requests_per_s": median(per_s),
        "p50_ms": _share(times, 0.5),
        "p90_ms": _share(times, 0.9),
        "tokens_per_s": median([run["tokens"] / run["seconds"] for run in runs]),
        "found": median([run["found"] for run in runs]),
        "encoded": median([run["encoded"] for run in runs]),
        "floor_per_s": floor,
        "repeats": {
            "requests_per_s": per_s,
            **{f"p{n}_ms": [_share(sorted(run["ms"]), n / 100) for run in runs] for n in (50, 90)},
        },
    }


def _share(ordered: list[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options, parser = _parse(argv)
    on = subject.load("throughput", options, parser)
    on_gpu = on.model.device.type == "cuda"
    options.clients = options.clients or ([1, 4, 16, 64] if on_gpu else [1, 4])
    caches: dict[str, Any] = {} if options.caches else {"prefix_cache": False, "image_cache": 0}
    config = EngineConfig(
        device=options.device,
        max_batch_size=options.batch,
        kv_dtype=options.kv,
        resize=options.resize,
        dependent_launch=options.dependent_launch,
        two_streams=options.two_streams,
        progress=False,
        **caches,
    )
    result = {**on.header, "resize": options.resize}
    with mdinfer.Engine(on.loaded, config) as engine:
        if not options.until_done:
            endless(engine)
        print(engine.description())
        if "mixed" in options.load:
            result |= mixed.measure(engine, options)
            mixed.show(result)
        if "charts" in options.load:
            result["caches"] = options.caches
            result["charts"] = list(measure_charts(engine, on, options))
            if known := peers.published(result["environment"]["device"]):
                result["published"] = peers.records(known)
            _show(result, options)
        stats = engine.stats()
        result["stats"] = {name: getattr(stats, name) for name in stats.__slots__}
    write_json(options.json, result)
    return result


def _show(result: dict[str, Any], options: argparse.Namespace) -> None:
    device = result["environment"]["device"]
    known = peers.published(device)
    rows = []
    for r in result["charts"]:
        row = [r["answers"], r["clients"], r["state"], r["requests_per_s"], r["p50_ms"], r["p90_ms"]]
        row += [f"{r['found']:.0%}", r["encoded"], "-" if r["floor_per_s"] is None else f"{r['floor_per_s']:.1f}"]
        if known:
            theirs = known.get((r["answers"], r["clients"])) if r["state"] == "clean" else None
            row += (
                [f"{theirs[0]:.1f}", f"{theirs[1]:.1f}", f"{r['requests_per_s'] / theirs[0]:.2f}"]
                if theirs
                else ["-"] * 3
            )
        rows.append(row)
    columns = ["tokens", "clients", "caches", "requests/s", "p50 ms", "p90 ms", "of prompts cached", "encoded", "floor"]
    print("\n" + table(columns + (["Kestrel", "p50 ms", "x"] if known else []), rows))
    if not options.folder:
        print("the floor is of a clean cache at 40% of questions about pictures seen, prefills of up to 8 at once")
    if known:
        print(peers.DIFFERENCES)


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject.add_options(parser, rounds=3, random=None)
    parser.add_argument("--load", nargs="+", choices=("mixed", "charts"), default=["mixed", "charts"])
    parser.add_argument("--batch", type=int, default=64, help="sequences that run together")
    parser.add_argument("--resize", choices=("cpu", "device"), default="cpu", help="where pictures are resized")
    parser.add_argument("--seed", type=int, default=1)
    charts = parser.add_argument_group("charts")
    charts.add_argument("--clients", type=int, nargs="+", metavar="N", help="1 4 16 64; on a CPU 1 4")
    charts.add_argument("--answers", type=int, nargs="+", default=[3, 30], metavar="TOKENS")
    charts.add_argument("--each", type=int, default=4, help="questions that a client asks")
    charts.add_argument("--least", type=int, default=12, help="questions that are asked in all, at least")
    charts.add_argument("--folder", type=Path, help="pictures, and a question a line in name.txt beside name.png")
    charts.add_argument("--until-done", action="store_true", help="let answers end where the model ends them")
    charts.add_argument("--no-caches", dest="caches", action="store_false", help="share neither pictures nor prompts")
    mix = parser.add_argument_group("mixed")
    mix.add_argument("--requests", type=int, default=32)
    mix.add_argument("--tokens", type=int, default=30, help="most tokens of an answer")
    mix.add_argument("--pictures", type=int, default=8, help="about which several questions are asked")
    options = parser.parse_args(argv)
    if options.until_done:
        options.load, options.answers = ["charts"], [_CAP]
    return options, parser


if __name__ == "__main__":
    main()
