"""README's figures are those of the result files, also of a GPU's where there are any; faults of markers are told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decode, goals, readme, throughput, vision
from benchmarks.blocks import BLOCKS, place
from benchmarks.sizes import SIZES
from mdinfer.loading import parameter_count

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
H100 = "NVIDIA H100 80GB HBM3"


def test_the_readme_is_up_to_date_and_has_every_block(capsys: pytest.CaptureFixture[str]) -> None:
    before = (ROOT / "README.md").read_bytes()
    assert readme.main(["--check"]) == 0, capsys.readouterr().out
    assert (ROOT / "README.md").read_bytes() == before
    names = re.findall(r"^<!-- figures: (.*) -->$", before.decode(), flags=re.MULTILINE)
    assert sorted(names) == sorted(BLOCKS)


class Copy:
    """A README with some of the blocks, without what they are to hold, and the result files."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.readme, self.results = folder / "README.md", folder / "results"
        shutil.copytree(RESULTS, self.results, ignore=shutil.ignore_patterns("gpu-*"))
        blocks = "\n".join(f"<!-- figures: {name} -->\n<!-- end -->\nafter {name}" for name in names)
        self.readme.write_text(f"before\n{blocks}\n")

    def run(self, *arguments: str) -> int:
        return readme.main([*arguments, "--readme", str(self.readme), "--results", str(self.results)])

    def text(self) -> str:
        return self.readme.read_text()

    def result(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.results / f"{name}.json").read_text())
        return found

    def put(self, name: str, result: dict[str, Any]) -> None:
        (self.results / f"{name}.json").write_text(json.dumps(result))


def test_a_changed_figure_is_noticed_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Copy(tmp_path, "experts", "quality", "full size")
    assert copy.run() == 0
    written = copy.text()
    assert copy.run("--check") == 0
    result = copy.result("experts-cpu")
    [record] = [r for r in result["results"] if (r["name"], r["batch"]) == ("int8", 4)]
    record["decode_ratio"] = 7.77
    copy.put("experts-cpu", result)
    capsys.readouterr()
    assert copy.run("--check") == 1
    assert "is stale: experts;" in capsys.readouterr().out
    assert copy.text() == written
    assert copy.run() == 0 and copy.run("--check") == 0
    changed = [(a, b) for a, b in zip(written.splitlines(), copy.text().splitlines(), strict=True) if a != b]
    [(before, after)] = changed
    assert after.startswith("| decoding, batch 4 |") and after.count("| 7.77 |") == 1 and "7.77" not in before


def test_what_stands_around_blocks_stays(tmp_path: Path) -> None:
    copy = Copy(tmp_path, "overhead", "soak")
    copy.run()
    lines = copy.text().splitlines()
    assert [line for line in lines if line.startswith(("before", "after", "<!--"))] == [
        "before",
        *("<!-- figures: overhead -->", "<!-- end -->", "after overhead"),
        *("<!-- figures: soak -->", "<!-- end -->", "after soak"),
    ]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<!-- figures: nothing -->\n<!-- end -->", "line 1: no block is called 'nothing', but experts, "),
        ("<!-- figures: -->\n<!-- end -->", "line 1: no block is called ''"),
        ("a\n<!-- figures: soak -->\nb", "line 2: the block soak has no `<!-- end -->`"),
        ("<!-- figures: soak -->\n<!-- figures: overhead -->\n<!-- end -->", "line 1: the block soak has no"),
        ("a\n\n<!-- end -->", "line 3: this ends no block"),
    ],
)
def test_markers_that_are_wrong(text: str, what: str, tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    copy.readme.write_text(text)
    with pytest.raises(SystemExit, match=re.escape(what)):
        copy.run()
    assert copy.text() == text


@pytest.mark.parametrize("name", ["experts-cpu", "full-size-cpu", "cpu-full-bfloat16", "images-cpu", "soak-cpu"])
def test_a_result_that_is_missing(name: str, tmp_path: Path) -> None:
    copy = Copy(tmp_path, "experts", "full size", "images", "soak")
    (copy.results / f"{name}.json").unlink()
    with pytest.raises(SystemExit, match=rf"{name}\.json cannot be read: No such file"):
        copy.run("--check")


def test_a_precision_that_failed_is_told(tmp_path: Path) -> None:
    copy = Copy(tmp_path, "full size")
    result = copy.result("full-size-cpu")
    result["results"][1] = {"experts": "int8", "error": "ended with status 1"}
    copy.put("full-size-cpu", result)
    copy.run()
    assert "| int8 | ended with status 1 | - | - | - |" in copy.text()


def test_what_files_do_not_have_in_common_is_told_of_each() -> None:
    one, two = (
        {"environment": {"device": "chip", "threads": n, "torch": "2", "commit": c}}
        for n, c in ((1, "0123456789ab"), (2, "0123456789ab+changes"))
    )
    assert place([one]) == "chip, 1 thread, torch 2, commit 0123456"
    told = "chip, 1 thread and 2 threads, torch 2, commit 0123456 and commit 0123456+changes"
    assert place([one, two]) == told
    assert place([one, two], threads=False) == told.replace("1 thread and 2 threads, ", "")


def goal_rows(copy: Copy) -> dict[str, list[str]]:
    """What is aimed for -> goal, floor, Kestrel, measured."""
    rows = [line.strip("| ").split(" | ") for line in copy.text().splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows if len(row) == 5 and row[0] != "---"}


def test_without_a_gpus_files_goals_and_floors_are_told(tmp_path: Path) -> None:
    """To the digits shown; floors are those of `python -m benchmarks.roofline --chip H100`."""
    copy = Copy(tmp_path, "goals")
    copy.run()
    rows = goal_rows(copy)
    assert [row[0] for row in rows.values()] == ["1.5", "1.1", "7", "10.5", "60", "95", "24", "75"]
    assert [row[2] for row in rows.values()] == ["-", "1.67", "8 to 12", "16.4", "34.6", "53.0", "13.5", "41.5"]
    assert [row[1] for row in rows.values()] == ["1.16", "0.80", "4.91", "7.56", "102.0", "158.9", "31.8", "119.6"]
    assert {row[3] for row in rows.values()} == {goals.NOT_MEASURED}
    assert "None of this has been measured yet." in copy.text()


def on_gpu(path: Path, device: str, **more: Any) -> dict[str, Any]:
    """What a benchmark wrote here, as if of the full model and a GPU."""
    result: dict[str, Any] = json.loads(path.read_text())
    result["environment"]["device"] = device
    return {**result, "model": "random full", "parameters": parameter_count(SIZES["full"]), **more}


SMALL = ["--checkpoint", "demo", "--device", "cpu", "--dtype", "bfloat16", "--rounds", "1"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that the benchmarks wrote with the options of gpu.sh, but for their sizes."""
    folder = tmp_path_factory.mktemp("written")

    def to(name: str) -> list[str]:
        return ["--json", str(folder / f"gpu-{name}.json")]

    step = ["--batch", "1", "64", "--prompt", "4", "--tokens", "1", "--no-vision"]
    decode.main([*SMALL, "--experts", "bf16", "--kv", "bf16", *step, *to("full-bf16")])
    vision.main([*SMALL, "--crops", "9", *to("vision")])
    load = ["--load", "charts", "--clients", "1", "64", "--each", "0", "--least", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdinfer.loading._can_widen", lambda *args: False)  # as on a GPU
        fp8 = ["--experts", "fp8", "--kv", "fp8"]
        decode.main([*SMALL, *fp8, *step, *to("full-fp8")])
        throughput.main([*SMALL, *fp8, *load, *to("throughput")])
    return folder


def fill(copy: Copy, written: Path, device: str) -> None:
    """Round figures in place of what small models take."""
    for name in ("full-bf16", "full-fp8"):
        result = on_gpu(written / f"gpu-{name}.json", device, prompt=goals.CONTEXT)
        for record in result["results"]:
            record["decode_ms"] = {1: 1.25, 64: 6.5}[record["batch"]] + (name == "full-bf16")
        copy.put(f"gpu-{name}", result)
    result = on_gpu(written / "gpu-vision.json", device)
    result["results"][0]["vision_ms"] = 10.25
    copy.put("gpu-vision", result)
    result = on_gpu(written / "gpu-throughput.json", device)
    for record in result["charts"]:
        shown = record["state"] == "clean"
        record["requests_per_s"] = shown * (100.0 * record["answers"] + record["clients"])
    copy.put("gpu-throughput", result)


def test_goals_beside_what_a_gpu_reached(tmp_path: Path, written: Path) -> None:
    copy = Copy(tmp_path, "goals")
    fill(copy, written, H100)
    copy.run()
    measured = ["2.25", "1.25", "6.50", "10.2", "301.0", "364.0", "3001.0", "3064.0"]
    assert [row[3] for row in goal_rows(copy).values()] == measured
    assert f"Measured on {H100}, torch " in copy.text() and "model: random full." in copy.text()
    (copy.results / "gpu-full-fp8.json").unlink()
    copy.run()
    none = [goals.NOT_MEASURED] * 2
    assert [row[3] for row in goal_rows(copy).values()] == [measured[0], *none, *measured[3:]]


def test_another_chip_is_named(tmp_path: Path, written: Path) -> None:
    copy = Copy(tmp_path, "goals")
    fill(copy, written, "NVIDIA H200")
    copy.run()
    assert [row[3] for row in goal_rows(copy).values()][:2] == ["2.25, on NVIDIA H200", "1.25, on NVIDIA H200"]


def test_a_batch_that_was_left_out_is_not_measured(tmp_path: Path, written: Path) -> None:
    copy = Copy(tmp_path, "goals")
    fill(copy, written, H100)
    result = copy.result("gpu-full-fp8")
    result["results"].pop()
    copy.put("gpu-full-fp8", result)
    copy.run()
    assert [row[3] for row in goal_rows(copy).values()][1:3] == ["1.25", goals.NOT_MEASURED]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("full-bf16", "parameters", 23_000_000),
        ("full-bf16", "prompt", 200),
        ("full-fp8", "precision", "bfloat16, cache bf16"),
        ("vision", "precision", "bfloat16, linears float8_e4m3fn"),
        ("throughput", "caches", False),
    ],
)
def test_figures_of_something_else_are_refused(
    name: str, key: str, value: object, tmp_path: Path, written: Path
) -> None:
    copy = Copy(tmp_path, "goals")
    fill(copy, written, H100)
    copy.put(f"gpu-{name}", copy.result(f"gpu-{name}") | {key: value})
    with pytest.raises(SystemExit, match=re.escape(f"gpu-{name}.json says {key} is {value!r}, not ")):
        copy.run()


def test_the_script_for_a_gpu_measures_what_the_goals_are_of() -> None:
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    names = re.findall(r"(gpu-[^\"]*)\.json", script)
    written = {name.replace("$precision", precision) for name in names for precision in ("bf16", "fp8")}
    assert {goal.file for goal in goals.goals()} <= written
    assert f"decode=(--batch 1 4 16 64 --prompt {goals.CONTEXT} " in script
    assert "charts=(--random full --dtype bfloat16 --clients 1 4 16 64 " in script
    assert goals.CROPS in vision.CROPS and throughput._parse([])[0].answers == [3, 30]
