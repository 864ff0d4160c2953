"""What chips can do: bytes a second from memory, and dense products a second with float32 sums.

Data sheets state what no program reaches. Where it is known what a large copy and large products do reach, that is
kept beside it, and floors are made from it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from benchmarks.costs import Cost, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes and FLOPs a second; without fp8, products of it run as bfloat16.

    kind      the type that `bf16` is of, where it is another
    source    where they are from
    """

    bandwidth: float
    bf16: float
    fp8: float | None = None
    kind: str = "bf16"
    source: str = ""

    def seconds(self, part: Part) -> float:
        """The longer of moving and computing, as if each hid the other wholly."""
        rate = self.fp8 if part.rate == "fp8" and self.fp8 else self.bf16
        return max(part.bytes / self.bandwidth, part.flops / rate)

    def floor(self, cost: Cost) -> float:
        """Seconds of all parts one after the other."""
        return sum(map(self.seconds, cost))

    def __str__(self) -> str:
        fp8 = f"{_tera(self.fp8)} in fp8" if self.fp8 else "none in fp8"
        return f"{_tera(self.bandwidth)} TB/s, {_tera(self.bf16)} TFLOP/s in {self.kind}, {fp8} ({self.source})"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.0f}" if rate >= 1e15 else f"{rate / 1e12:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    sheet: Rates
    reached: Rates | None = None

    @property
    def rates(self) -> Rates:
        return self.reached or self.sheet


def _sheet(tb: float, bf16: float, fp8: float | None, source: str) -> Rates:
    return Rates(bandwidth=tb * 1e12, bf16=bf16 * 1e12, fp8=fp8 and fp8 * 1e12, source=source)


_REACHED = "as large copies and products reach"

# Dense rates, without sparsity. GeForce cards run products with float32 sums at half of the rate that is advertised.
CHIPS = {
    "A100-40": Chip(sheet=_sheet(1.555, 312, None, "data sheet: NVIDIA A100, 40 GB SXM")),
    "A100": Chip(sheet=_sheet(2.039, 312, None, "data sheet: NVIDIA A100, 80 GB SXM")),
    "H100-PCIe": Chip(sheet=_sheet(2.0, 756, 1513, "data sheet: NVIDIA H100, PCIe")),
    "H100": Chip(
        sheet=_sheet(3.35, 989, 1979, "data sheet: NVIDIA H100, SXM"), reached=_sheet(3.0, 800, 1400, _REACHED)
    ),
    "H200": Chip(
        sheet=_sheet(4.8, 989, 1979, "data sheet: NVIDIA H200, SXM"), reached=_sheet(4.3, 800, 1400, _REACHED)
    ),
    "B200": Chip(sheet=_sheet(8.0, 2250, 4500, "data sheet: NVIDIA DGX B200, an eighth of it")),
    "L4": Chip(sheet=_sheet(0.3, 121, 242, "data sheet: NVIDIA L4")),
    "L40S": Chip(sheet=_sheet(0.864, 362, 733, "data sheet: NVIDIA L40S")),
    "RTX3090": Chip(sheet=_sheet(0.936, 71, None, "white paper: NVIDIA Ampere GA102")),
    "RTX4090": Chip(sheet=_sheet(1.008, 165.2, 330.3, "white paper: NVIDIA Ada")),
    "RTX5090": Chip(sheet=_sheet(1.792, 209.5, 419, "white paper: NVIDIA RTX Blackwell")),
}


def add_options(parser: argparse._ActionsContainer, *, default: str | None) -> None:
    """--chip, or rates one by one, for `chosen`."""
    parser.add_argument("--chip", choices=CHIPS, default=default, help="rates by name")
    parser.add_argument("--sheet", action="store_true", help="the data sheet's, also where it is known what is reached")
    parser.add_argument("--bandwidth", type=float, metavar="TB/S", help="of its memory")
    parser.add_argument("--bf16", type=float, metavar="TFLOP/S")
    parser.add_argument("--fp8", type=float, metavar="TFLOP/S")


def chosen(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Rates | None:
    """The rates that the options name; None where they name none."""
    given = (options.bandwidth, options.bf16, options.fp8)
    if any(rate is not None and rate <= 0 for rate in given):
        parser.error("rates are positive numbers")
    if options.bandwidth and options.bf16:
        return _sheet(*given, source="as given")
    if any(rate is not None for rate in given):
        parser.error("--bandwidth and --bf16 go together; --fp8 where there is any")
    if options.chip is None:
        return None
    chip = CHIPS[options.chip]
    return chip.sheet if options.sheet else chip.rates
