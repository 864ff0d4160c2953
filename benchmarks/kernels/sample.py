"""The choice of the next token over the whole vocabulary, and over the control ids alone."""

from __future__ import annotations

import torch

from benchmarks.kernels.case import Case, Inputs, randn
from mdinfer.config import TokenConfig
from mdinfer.decode_table import State, decode_table
from mdinfer.kernels import Draws, Sampled
from mdinfer.kernels._triton import sample
from mdinfer.kernels.sample import CONTROL_IDS, sample_torch

_VOCABULARY = 51200
_GREEDY_WHY = "the largest logit is exact; log-probabilities are sums in float32"
_DRAWN_WHY = "float32 sums put a few draws in a thousand next to the edge of a stretch of the unit interval"


def cases() -> list[Case]:
    return [
        *(_case(B, _VOCABULARY, State.ANSWER, drawn=False) for B in (1, 64)),
        *(_case(B, CONTROL_IDS, State.DETECT_X, drawn=False) for B in (1, 64)),
        *(_case(B, _VOCABULARY, State.REASONING, drawn=True) for B in (1, 16, 64, 256)),
        _case(1, _VOCABULARY, State.ANSWER, drawn=True, top_p=1.0),
        _case(1, _VOCABULARY, State.ANSWER, drawn=True, scale=1.0),
        *(_case(64, _VOCABULARY, State.ANSWER, drawn=drawn, logprobs=5) for drawn in (False, True)),
        _case(64, CONTROL_IDS, State.DETECT_X, drawn=True),
        *(_case(64, CONTROL_IDS, State.DETECT_X, drawn=drawn, logprobs=5) for drawn in (False, True)),
        _case(1, _VOCABULARY, State.ANSWER, drawn=True, dtype=torch.float32),
    ]


def _case(
    B: int,
    V: int,
    state: State,
    *,
    drawn: bool,
    top_p: float = 0.9,
    scale: float = 4.0,
    logprobs: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    """Normal logits: at a scale of 4 a nucleus of some dozens of tokens, at 1 one of half of the vocabulary."""

    def inputs(device: torch.device) -> Inputs:
        draws = Draws(
            temperature=torch.full((B,), 0.8, device=device),
            top_p=torch.full((B,), top_p, device=device),
            seeds=torch.arange(B, device=device),
            steps=torch.full((B,), 7, device=device),
        )
        states = torch.full((B,), int(state), device=device)
        table = decode_table(TokenConfig()).to(device)
        logits = randn(B, V, device=device, dtype=dtype, scale=scale)
        return logits, states, table, draws if drawn else None, logprobs

    def results(found: Sampled) -> tuple[torch.Tensor, ...]:
        return (found.choice,) if found.logprobs is None else (found.choice, found.logprobs)

    def top_p_by_sort(logits: torch.Tensor, *_: object) -> torch.Tensor:
        odds, ids = torch.softmax(logits.float() / 0.8, dim=-1).sort(dim=-1, descending=True)
        odds[odds.cumsum(dim=-1) - odds > top_p] = 0
        return ids.gather(1, torch.multinomial(odds, 1))

    width = torch.empty((), dtype=dtype).itemsize
    name = "x".join((str(B), str(V))) + f"-{str(dtype)[6:]}"
    details = (f"p{top_p}" if drawn else "greedy", f"s{scale:g}", *([f"logprobs{logprobs}"] if logprobs else []))
    return Case(
        op="sample",
        shape="-".join((name, *details)),
        inputs=inputs,
        run=lambda *args: results(sample.sample(*args)),
        twin=lambda *args: results(sample_torch(*args)),
        bound=0.05 if drawn else 0.0 if logprobs is None else 1e-5,
        why=_DRAWN_WHY if drawn else _GREEDY_WHY,
        rivals={"torch sort": top_p_by_sort} if drawn else {"torch argmax": lambda logits, *_: logits.argmax(dim=-1)},
        bytes=B * V * width * (2 if drawn else 1),
    )
