"""All cases, by the file they come from."""

from __future__ import annotations

from benchmarks.kernels import attention, epilogue, linear, moe, norm, region, sample, vision
from benchmarks.kernels.case import Case

FAMILIES = {
    "attention": attention.cases,
    "epilogue": epilogue.cases,
    "linear": linear.cases,
    "moe": moe.cases,
    "norm": norm.cases,
    "region": region.cases,
    "sample": sample.cases,
    "vision": vision.cases,
}


def all_cases(families: list[str] | None = None) -> list[Case]:
    """The cases of the named families, or of all."""
    return [case for name, cases in FAMILIES.items() if not families or name in families for case in cases()]
