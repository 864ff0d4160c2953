"""The sampler against sampling.json: what each nucleus keeps, its exact distribution, and that draws stay in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdinfer.config import TokenConfig
from mdinfer.decode_table import State, decode_table
from mdinfer.kernels import DecodeTable, Draws, nucleus, sample
from mdinfer.kernels.sample import CONTROL_IDS
from tests.golden_data import sampling_data

SAMPLING = sampling_data()
CASES = [
    pytest.param(case, id=f"{case['logits']}-t{case['temperature']}-p{case['top_p']}") for case in SAMPLING["cases"]
]


def golden(case: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at temperature 1, and the filtered distribution."""
    logits = torch.tensor(SAMPLING["logits"][case["logits"]])
    distribution = torch.zeros(len(logits), dtype=torch.float64)
    for token, probability in case["probs"]:
        distribution[token] = probability
    return logits, distribution


@pytest.mark.parametrize("case", CASES)
def test_the_nucleus_is_golden(case: Any) -> None:
    """Kept tokens exactly; probabilities to 1e-6, a few roundings of float32."""
    logits, distribution = golden(case)
    found = nucleus((logits / case["temperature"])[None], torch.tensor([case["top_p"]]))[0]
    assert int((found > 0).sum()) == case["kept"]
    assert torch.equal(found > 0, distribution > 0)
    assert (found - distribution).abs().max().item() < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_draws_take_each_kept_token_for_its_share_of_the_unit_interval(case: Any) -> None:
    """4,096 evenly spaced numbers: a token's count is its probability's, but for one at each end of its stretch."""
    logits, distribution = golden(case)
    padding = max(0, CONTROL_IDS - len(logits))  # the sampler takes no fewer than the control ids
    logits = torch.nn.functional.pad(logits, (0, padding), value=float("-inf"))
    distribution = torch.nn.functional.pad(distribution, (0, padding))
    free = decode_table(TokenConfig())
    free = DecodeTable(allowed=torch.ones_like(free.allowed), follows=free.follows, kinds=free.kinds)
    count = 4096
    found = sample(
        logits.repeat(count, 1),
        torch.full((count,), int(State.ANSWER)),
        free,
        Draws(
            temperature=torch.full((count,), case["temperature"]),
            top_p=torch.full((count,), case["top_p"]),
            uniform=torch.arange(count) / count,
        ),
    )
    seen = torch.bincount(found.tokens, minlength=len(logits))
    assert (seen - distribution * count).abs().max().item() <= 1.01
    assert int(seen[distribution == 0].sum()) == 0
