"""The choice of the next token, under the decode table of its skill.

A table row is a decoding state: which of the 16 control ids it allows, whether it allows plain text, what each
token leads to. In state s, with the barred logits at minus infinity:
    temperature 0:  the largest logit; a tie goes to the lower id, except where plain text is barred: there the
                    higher id wins, so that a tie between stopping and going on goes on
    otherwise:      softmax(logits / temperature), cut to the nucleus, inverted at one uniform number
The nucleus keeps a token while the sum of the likelier ones is at most top_p. Inversion lays tokens out from the
likeliest, equal ones by id; where top_p is 1 or more, by id alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mdinfer.kernels import dispatch

CONTROL_IDS = 16
PLAIN = CONTROL_IDS  # the class of every id from 16 on
_LIKELIEST = 256
COLDEST = 1e-30  # below, a difference of logits over the temperature may leave float32; both are greedy


@dataclass(frozen=True, kw_only=True)
class DecodeTable:
    """allowed (states, 17) bool; follows (states, 17) int64, the next state; kinds (states, 17) int64, TokenKind.

    Columns are token classes: the id itself below 16, `PLAIN` for all others. `masks` (states,) int32 holds the rows
    of `allowed` as bits.
    """

    allowed: torch.Tensor
    follows: torch.Tensor
    kinds: torch.Tensor
    masks: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        bits = torch.arange(CONTROL_IDS + 1, device=self.allowed.device)
        masks = (self.allowed.long() << bits).sum(dim=1, dtype=torch.int32)
        object.__setattr__(self, "masks", masks)

    def to(self, device: torch.device) -> DecodeTable:
        return DecodeTable(
            allowed=self.allowed.to(device), follows=self.follows.to(device), kinds=self.kinds.to(device)
        )


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Per row: temperature (0 is greedy) and top_p, float32, and where its uniform number in [0, 1) comes from.

    Either `seeds` and `steps`, int64, see `uniform()`; or the number itself, float32.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    seeds: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    uniform: torch.Tensor | None = None

    def numbers(self) -> torch.Tensor:
        if self.uniform is not None:
            return self.uniform
        assert self.seeds is not None and self.steps is not None
        return uniform(self.seeds, self.steps)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """choice (4, B) int64: the token, what its input row will be made of (TokenKind), the state it leads to, soundness.

    A row is sound (1) unless the allowed logits held a NaN or an infinite largest: then its token means nothing.
    logprobs (B,), top_tokens and top_logprobs (B, count), all float32 but the tokens, where they were asked for.
    """

    choice: torch.Tensor
    logprobs: torch.Tensor | None
    top_tokens: torch.Tensor | None
    top_logprobs: torch.Tensor | None

    @property
    def tokens(self) -> torch.Tensor:
        return self.choice[0]

    @property
    def kinds(self) -> torch.Tensor:
        return self.choice[1]

    @property
    def states(self) -> torch.Tensor:
        return self.choice[2]

    @property
    def sound(self) -> torch.Tensor:
        return self.choice[3].bool()


def sample(
    logits_BV: torch.Tensor,
    states_B: torch.Tensor,
    table: DecodeTable,
    draws: Draws | None = None,
    top_logprobs: int | None = None,
) -> Sampled:
    """Choose one token a row.

    logits in any float dtype (V may be 16: only control ids), which may be overwritten; states int64; draws None
    where every row is greedy. `top_logprobs` asks for log-probabilities (at temperature 1, of what the state allows)
    of the choice and of that many likeliest tokens.
    """
    assert logits_BV.dim() == 2 and logits_BV.shape[1] >= CONTROL_IDS, logits_BV.shape
    assert states_B.shape == logits_BV.shape[:1], (states_B.shape, logits_BV.shape)
    if dispatch.compiled(logits_BV):
        from mdinfer.kernels._triton import sample as compiled

        return compiled.sample(logits_BV, states_B, table, draws, top_logprobs)
    return sample_torch(logits_BV, states_B, table, draws, top_logprobs)


def sample_torch(
    logits_BV: torch.Tensor,
    states_B: torch.Tensor,
    table: DecodeTable,
    draws: Draws | None = None,
    top_logprobs: int | None = None,
) -> Sampled:
    """The torch body of `sample`."""
    logits, peak, tokens = _masked_greedy(logits_BV.float(), table.allowed[states_B])
    if draws is not None:
        warm = draws.temperature > 0
        divisor = torch.where(warm, draws.temperature, 1.0).clamp(min=COLDEST)[:, None]
        drawn = _draw((logits - peak[:, None]) / divisor, draws.top_p, draws.numbers())
        tokens = torch.where(warm, drawn, tokens)
    column = tokens.clamp(max=PLAIN)
    logprobs = top_ids = top_values = None
    if top_logprobs is not None:
        every = torch.log_softmax(logits, dim=-1)
        logprobs = every.gather(1, tokens[:, None])[:, 0]
        top_values, top_ids = every.topk(min(top_logprobs, every.shape[1]), dim=-1)
    return Sampled(
        choice=torch.stack(
            (tokens, table.kinds[states_B, column], table.follows[states_B, column], peak.isfinite().long())
        ),
        logprobs=logprobs,
        top_tokens=top_ids,
        top_logprobs=top_values,
    )


def nucleus(logits_BV: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """(B, V): softmax of the logits, cut to each row's nucleus and renormalised."""
    probs, ids = torch.softmax(logits_BV.float(), dim=-1).sort(dim=-1, descending=True, stable=True)
    kept = _cut(probs, top_p_B)
    return torch.zeros_like(probs).scatter_(1, ids, kept / kept.sum(dim=-1, keepdim=True))


def uniform(seeds_B: torch.Tensor, steps_B: torch.Tensor) -> torch.Tensor:
    """(B,) float32 in [0, 1): the first word of Philox-4x32-10 with key `seeds` (int64) and counter `steps`.

    The number depends on nothing but the request's seed and the position of the token in its answer.
    """
    mask = 0xFFFFFFFF
    k0, k1 = seeds_B & mask, (seeds_B >> 32) & mask
    c0, c1 = steps_B & mask, (steps_B >> 32) & mask
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(10):  # int64 products wrap; the masked halves are those of the unsigned product
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((second >> 32) & mask) ^ c1 ^ k0,
            second & mask,
            ((first >> 32) & mask) ^ c3 ^ k1,
            first & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return (c0 >> 8).float() * 2.0**-24


def _masked_greedy(logits: torch.Tensor, allowed_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits with what the state bars at minus infinity, in place; each row's largest, and whose it is."""
    control = logits[:, :CONTROL_IDS]
    control.masked_fill_(~allowed_BC[:, :CONTROL_IDS], float("-inf"))
    barred = ~allowed_BC[:, PLAIN]
    if not bool(barred.any()):
        return logits, *logits.max(dim=-1)
    if logits.shape[1] > CONTROL_IDS:
        logits[:, CONTROL_IDS:].masked_fill_(barred[:, None], float("-inf"))
    last = CONTROL_IDS - 1 - control.flip(-1).argmax(dim=-1)
    peak, first = logits.max(dim=-1)
    return logits, peak, torch.where(barred, last, first)


def _before(probs: torch.Tensor) -> torch.Tensor:
    """The sum of all likelier entries, for rows sorted from the likeliest."""
    return torch.cumsum(probs, dim=-1) - probs


def _draw(logits: torch.Tensor, top_p_B: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """One id a row; how a row is drawn depends on nothing but the row.

    Only a nucleus needs the order of likelihood: where top_p is 1 ids are laid out as they come.
    """
    probs = torch.softmax(logits, dim=-1)
    tokens = torch.empty(len(probs), dtype=torch.int64, device=probs.device)
    whole = top_p_B >= 1
    rows = whole.nonzero()[:, 0]
    tokens[rows] = _invert(probs[rows], uniform_B[rows])
    rows = (~whole).nonzero()[:, 0]
    if len(rows):
        some, ids = _likeliest(probs[rows], min(_LIKELIEST, probs.shape[1]))
        inside = some.sum(dim=-1) > top_p_B[rows]
        tokens[rows] = ids.gather(1, _invert(_cut(some, top_p_B[rows]), uniform_B[rows])[:, None])[:, 0]
        rows = rows[~inside]  # whose nucleus may be wider than that
    if len(rows):
        some, ids = probs[rows].sort(dim=-1, descending=True, stable=True)
        tokens[rows] = ids.gather(1, _invert(_cut(some, top_p_B[rows]), uniform_B[rows])[:, None])[:, 0]
    return tokens


def _cut(probs: torch.Tensor, top_p_B: torch.Tensor) -> torch.Tensor:
    """Zero outside the nucleus, for rows sorted from the likeliest."""
    return torch.where(_before(probs) <= top_p_B[:, None], probs, 0.0)


def _invert(weights: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The column of each row at which its running sum first exceeds the uniform share of its total."""
    reached = torch.cumsum(weights, dim=-1)
    place = (reached <= (uniform_B * reached[:, -1])[:, None]).sum(dim=-1)
    columns = torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(weights > 0, columns, 0).amax(dim=-1) if len(weights) else place
    return torch.minimum(place, last)


def _likeliest(probs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `count` columns of a stable descending sort, values and ids, at the price of a partial one.

    The bits of floats from 0 up rise with their value; with the id in the lower half, equal ones keep their order.
    """
    V = probs.shape[1]
    keys = (probs.view(torch.int32).long() << 32) + torch.arange(V - 1, -1, -1, device=probs.device)
    ids = V - 1 - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)
    return probs.gather(1, ids), ids
