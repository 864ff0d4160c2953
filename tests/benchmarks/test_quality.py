from __future__ import annotations

from benchmarks.demo.exam import exam
from benchmarks.quality import GROUPS, compared, group_of, main


def test_every_task_is_of_one_group() -> None:
    tasks = {case.dialogue.task for case in exam(3, cases=12)} | {"grounding recall", "detect precision", "no shapes"}
    assert {group_of(task) for task in tasks} == set(GROUPS)
    for task in tasks:
        assert sum(task.startswith(names) for names in GROUPS.values()) == 1, task


def test_lost_and_won() -> None:
    first = [[("places", 1, 1)], [("counts", 0, 1), ("boxes and points", 3, 4)], [("places", 1, 1)]]
    found = [[("places", 0, 1)], [("counts", 1, 1), ("boxes and points", 1, 2)], [("places", 1, 1)]]
    records = {record["group"]: record for record in compared(found, first)}
    assert records["places"] == {"group": "places", "right": 1, "count": 2, "lost": 1, "won": 0}
    assert records["counts"] == {"group": "counts", "right": 1, "count": 1, "lost": 0, "won": 1}
    assert records["boxes and points"] == {"group": "boxes and points", "right": 1, "count": 2, "lost": 2, "won": 0}
    assert records["two pictures, later pictures"]["count"] == 0


def test_precisions_of_one_run() -> None:
    result = main(["--cases", "1", "--device", "cpu", "--only", "float32", "experts int4"])
    first, second = result["results"]
    whole = first["groups"][-1]
    assert (whole["group"], whole["lost"], whole["won"]) == ("all", 0, 0)
    assert whole["right"] > 0.5 * whole["count"] > 10
    there = second["groups"][-1]
    assert there["right"] == whole["right"] - there["lost"] + there["won"]
