"""How many variants of each kernel a serving process may have to compile: `python -m benchmarks.variants`.

Triton compiles a kernel anew for other constants, and for arguments of another kind: an integer that is 1 or a
multiple of 16, a pointer aligned to 16 bytes, None. A variant that first turns up in the middle of a request costs
that request a second. So whatever changes from step to step is left unspecialised (`do_not_specialize`), and what
is left is counted here: the published model, without values, goes through steps of all kinds, with index tensors at
odd places as in one packed upload. Exits with 1 where the count is not the one of VARIANTS, or where a variant is one
that no case of `benchmarks.kernels` makes: `benchmarks.aot` would not have compiled it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

import torch

from benchmarks.aot import CHIPS, Chip, distinct, variant
from benchmarks.kernels.catalogue import all_cases
from benchmarks.report import table
from mdinfer.config import ModelConfig
from mdinfer.decode_table import decode_table
from mdinfer.kernels import AttentionBatch, Draws, TokenPlaces, dispatch, sample
from mdinfer.kernels._triton.launch import INTERPRETED, Launch, recorded
from mdinfer.kernels.int4 import INT4
from mdinfer.kernels.sample import CONTROL_IDS
from mdinfer.model.batch import ForwardBatch, KVCache
from mdinfer.model.moondream import Moondream

VARIANTS = {
    "add_layer_norm_kernel": (1, ""),
    "bias_gelu_kernel": (3, "vision's width; the decoder's, of few rows and of many"),
    "bias_residual_kernel": (1, ""),
    "choose_kernel": (8, "whole or control vocabulary, greedy or drawn, with logprobs or without"),
    "combine_kernel": (1, ""),
    "copy_pages_kernel": (1, ""),
    "crop_attention_kernel": (1, ""),
    "crop_patches_kernel": (1, ""),
    "decode_attention_kernel": (2, "chunks shared out or not"),
    "gather_kernel": (2, "whole or control vocabulary"),
    "grouped_fc1_kernel": (4, "rows of a tile"),
    "grouped_fc2_kernel": (4, "rows of a tile"),
    "heads_kernel": (2, "few rows and many"),
    "input_kernel": (4, "few rows and many, with images or without"),
    "joined_map_kernel": (1, ""),
    "layer_norm_kernel": (2, "vision's width and the decoder's"),
    "moe_order_kernel": (3, "tokens of a block"),
    "moe_route_kernel": (4, "tokens of a block"),
    "prefill_attention_kernel": (2, "few rows and many"),
    "qkv_write_kernel": (1, ""),
    "scan_kernel": (8, "as of choose_kernel"),
    "small_fc1_kernel": (1, ""),
    "small_fc2_kernel": (1, ""),
    "sum_choices_kernel": (1, ""),
    "tau_product_kernel": (2, "few rows and many"),
    "values_kernel": (2, "few rows and many"),
}
FP8_LINEARS = {  # with linears in fp8, these instead
    "bias_gelu_kernel": (2, "fewer rows than 16, and 16"),
    "bias_gelu_rows_kernel": (2, "vision's width and the decoder's"),
    "few_rows_kernel": (4, "shapes of the decoder's linears"),
    "layer_norm_rows_kernel": (1, ""),
    "quantise_rows_kernel": (3, "the decoder's widths, vision's, twice vision's"),
}
_FP8 = torch.float8_e4m3fn
PRECISIONS = {  # of experts, linears and the cache
    "bf16": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "fp8": (_FP8, torch.bfloat16, _FP8),
    "all fp8": (_FP8, _FP8, _FP8),
    "int4": (INT4, torch.bfloat16, _FP8),
}

_META = torch.device("meta")
_PAGE = 32
# Queries of the sequences of a step, prefilling ones first. 8.5 k rows at most.
_STEPS = (
    *((1,) * B for B in (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 48, 64, 65, 100, 128, 256)),
    *((T,) for T in (2, 5, 15, 16, 17, 45, 64, 65, 96, 100, 193, 256, 257, 745, 775, 1025, 1600, 4000)),
    *((775,) * n for n in (2, 3, 8, 11)),
    *((T,) + (1,) * B for T in (3, 45, 775) for B in (1, 2, 15, 64)),
    (45,) * 8,
)
_TILINGS = ([(1, 1)], [(2, 4)], [(3, 4)], [(1, 1), (2, 2), (1, 12)], [(2, 1)] * 7)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__.partition("\n")[0])
    parser.add_argument("--chip", type=int, default=90, choices=[chip.capability for chip in CHIPS])
    options = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("nothing is compiled while TRITON_INTERPRET=1 is set")
    chip = next(chip for chip in CHIPS if chip.capability == options.chip)
    compiled = {variant(launch, chip) for _, launch in distinct(all_cases(), chip)}
    found = {precision: served(chip, precision) for precision in PRECISIONS}
    names = sorted({*VARIANTS, *FP8_LINEARS, *(name for variants in found.values() for name in variants)})
    rows: list[list[Any]] = []
    faults = 0
    for name in names:
        expected = {precision: _expected(name, precision)[0] for precision in PRECISIONS}
        variants = {precision: found[precision].get(name, set()) for precision in PRECISIONS}
        counts = {precision: len(each) for precision, each in variants.items()}
        uncompiled = len(set().union(*variants.values()) - compiled)
        faults += uncompiled > 0 or counts != expected
        whats = dict.fromkeys(_expected(name, precision)[1] for precision in PRECISIONS)
        rows.append([name, max(expected.values()), *counts.values(), uncompiled, "; ".join(filter(None, whats))])
    print(table(["kernel", "variants", *(f"found, {p}" for p in PRECISIONS), "uncompiled", "what differs"], rows))
    print(f"{sum(row[1] for row in rows)} variants of {len(names)} kernels, {faults} faults")
    return 1 if faults else 0


def _expected(name: str, precision: str) -> tuple[int, str]:
    of_linears = FP8_LINEARS if PRECISIONS[precision][1] == _FP8 else {}
    return of_linears.get(name) or VARIANTS.get(name, (0, "" if name in FP8_LINEARS else "not in the table"))


def served(chip: Chip, precision: str) -> dict[str, set[object]]:
    """Variants by kernel, of a model in this precision."""
    with _on(chip) as launches:
        config = ModelConfig.from_dict(
            {"text": {"n_layers": 2, "moe": {"start_layer": 1}}, "vision": {"enc_n_layers": 1}}
        )
        experts, linears, kept = PRECISIONS[precision]
        model = Moondream(config, dtype=torch.bfloat16, expert_dtype=experts, linear_dtype=linears, device=_META)
        cache = KVCache.allocate(config.text, pages=256, page_size=_PAGE, dtype=kept, device=_META)
        for i, queries in enumerate(_STEPS):
            _choose(model, _forward(model, cache, queries, width=1 + 9 * i % 128, at=i), at=i)
        for tilings in _TILINGS:
            side, count = config.vision.crop_size, sum(1 + rows * cols for rows, cols in tilings)
            model.vision(torch.empty(count, side, side, 3, dtype=torch.uint8, device=_META), tilings, 16)
        for count in (1, 2, 16):
            cache.copy(_index(count, at=count), _index(count, at=1))
    variants: dict[str, set[object]] = defaultdict(set)
    for launch in launches:
        # Few tokens meet int4 experts in kernels of their own, in the place of those for other weights.
        variants[launch.name.replace("_int4_", "_")].add(variant(launch, chip))
    return dict(variants)


@contextmanager
def _on(chip: Chip) -> Iterator[list[Launch]]:
    """What kernels would be started on the chip."""
    with (
        mock.patch.object(dispatch, "compiled", return_value=True),
        recorded(run=False, target=chip.target) as launches,
    ):
        yield launches


def _index(*shape: int, at: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """A part of a larger upload that begins at any of its elements."""
    count = torch.Size(shape).numel()
    return torch.empty(at % 16 + count, dtype=dtype, device=_META)[at % 16 :].view(shape)


def _forward(model: Moondream, cache: KVCache, queries: tuple[int, ...], *, width: int, at: int) -> torch.Tensor:
    T, S = sum(queries), len(queries)
    for images in (torch.empty(T // 2, model.config.text.dim, dtype=model.dtype, device=_META), None):
        values = _index(T, 2, at=at, dtype=torch.float32)
        x = model.embed(_index(T, at=at), _index(T, at=at + 1), values, images)
    batch = ForwardBatch(
        x=x,
        places=TokenPlaces.of(_index(T, at=at), _index(T, at=at + 1), _index(T, at=at + 2), model.text.rope),
        attention=AttentionBatch(
            starts=_index(S + 1, at=at, dtype=torch.int32),
            pages=_index(S, width, at=at + 1, dtype=torch.int32),
            visible=_index(T, at=at + 2, dtype=torch.int32),
            queries=queries,
        ),
        last=_index(S, at=at),
    )
    hidden: torch.Tensor = model.text(batch, cache)
    return hidden


def _choose(model: Moondream, hidden: torch.Tensor, *, at: int) -> None:
    B = len(hidden)
    states = decode_table(model.config.tokenizer).to(_META)
    numbers = [_index(B, at=at + i, dtype=torch.float32) for i in (0, 1)]
    draws = Draws(temperature=numbers[0], top_p=numbers[1], seeds=_index(B, at=at), steps=_index(B, at=at + 1))
    for first, drawn, logprobs in product((None, CONTROL_IDS), (None, draws), (None, 5)):
        sample(model.text.logits(hidden, first), _index(B, at=at), states, drawn, logprobs)
    model.decode_values(hidden, _index(B, at=at))


if __name__ == "__main__":
    sys.exit(main())
