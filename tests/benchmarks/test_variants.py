"""The count of variants: what the table says, and that a kernel with one more is seen."""

from __future__ import annotations

import pytest

from benchmarks.variants import FP8_LINEARS, VARIANTS
from tests.benchmarks.test_aot import compiling


@pytest.mark.parametrize("chip", ["86", "90"])
def test_no_kernel_has_more_variants_than_the_table_says(chip: str) -> None:
    done = compiling("benchmarks.variants", "--chip", chip)
    assert done.returncode == 0, done.stdout + done.stderr
    most = [max(table.get(name, (0, ""))[0] for table in (VARIANTS, FP8_LINEARS)) for name in VARIANTS | FP8_LINEARS]
    assert done.stdout.splitlines()[-1] == f"{sum(most)} variants of {len(most)} kernels, 0 faults"


def test_a_specialised_argument_is_seen() -> None:
    done = compiling("tests.benchmarks.specialised")
    assert done.returncode == 1, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("layer_norm_kernel"))
    assert line.split()[1:3] == ["2", "5"]
