"""Runs a step plan on the model: pictures to features, rows through the decoder, hidden states to tokens.

What a sequence feeds into its next step (token, kind, value, decoding state) stays on the device, in the row of
its batch slot, so that a step needs nothing of the step before it from the host.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch

from mdinfer.decode_table import TEXT_STATES, VALUE_STATES, decode_table
from mdinfer.kernels import AttentionBatch, Sampled, TokenPlaces, sample, uniform
from mdinfer.kernels.sample import CONTROL_IDS
from mdinfer.model.batch import ForwardBatch, KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.scheduler import StepPlan
from mdinfer.sequence import SampledToken, Sequence


class Runner:
    def __init__(self, model: Moondream, cache: KVCache, *, max_batch_size: int, vision_crops: int) -> None:
        self.model, self.cache = model, cache
        self.device = model.device
        self._page_size = cache.k.shape[3]
        self._vision_crops = vision_crops
        table = decode_table(model.config.tokenizer)
        self.follows: list[list[int]] = table.follows.tolist()
        self._table = table.to(self.device)
        self._tokens = torch.zeros(max_batch_size, dtype=torch.int64, device=self.device)
        self._kinds = torch.zeros(max_batch_size, dtype=torch.int64, device=self.device)
        self._states = torch.zeros(max_batch_size, dtype=torch.int64, device=self.device)
        self._values = torch.zeros(max_batch_size, 2, device=self.device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[SampledToken]:
        """Advance every sequence of the plan by one token; the results are in the order of `plan.sequences`."""
        self.encode([s for s in plan.prefill if any(not isinstance(p, torch.Tensor) for p in s.pictures)])
        hidden = self.model.text(self._forward_batch(plan), self.cache)
        return self._choose(plan, hidden)

    @torch.inference_mode()
    def encode(self, sequences: Seq[Sequence]) -> None:
        """Turn the sequences' crops into features, in place; all crops go through the tower together."""
        places = [(s, i, p) for s in sequences for i, p in enumerate(s.pictures) if not isinstance(p, torch.Tensor)]
        if not places:
            return
        crops = torch.from_numpy(np.concatenate([p.pixels for _, _, p in places])).to(self.device)
        features = self.model.vision(crops, [p.tiling for _, _, p in places], self._vision_crops)
        for (sequence, i, _), rows in zip(places, features, strict=True):
            sequence.pictures[i] = rows

    def _forward_batch(self, plan: StepPlan) -> ForwardBatch:
        parts = [self._prompt_rows(plan.prefill)] if plan.prefill else []
        if plan.decode:
            slots = self._tensor([s.slot for s in plan.decode])
            parts.append(self.model.embed(self._tokens[slots], self._kinds[slots], self._values[slots], None))
        counts = [len(s.prompt) for s in plan.prefill] + [1] * len(plan.decode)
        positions = [np.arange(len(s.prompt)) for s in plan.prefill]
        positions += [np.array([s.length - 1]) for s in plan.decode]
        visible = [s.prompt.visible for s in plan.prefill]
        visible += [np.array([s.length], dtype=np.int32) for s in plan.decode]
        starts = np.cumsum([0, *counts])
        return ForwardBatch(
            x=torch.cat(parts) if len(parts) > 1 else parts[0],
            places=TokenPlaces.of(
                self._tensor(np.concatenate(positions)),
                *self._cache_places(plan.sequences, positions),
                self.model.text.rope,
            ),
            attention=AttentionBatch(
                starts=self._tensor(starts.astype(np.int32)),
                pages=self._tensor(_page_table(plan.sequences)),
                visible=self._tensor(np.concatenate(visible)),
            ),
            last=self._tensor(starts[1:] - 1),
        )

    def _prompt_rows(self, prefill: Seq[Sequence]) -> torch.Tensor:
        images = [p for s in prefill for p in s.pictures if isinstance(p, torch.Tensor)]
        return self.model.embed(
            self._tensor(np.concatenate([s.prompt.tokens for s in prefill])),
            self._tensor(np.concatenate([s.prompt.kinds for s in prefill])),
            self._tensor(np.concatenate([s.prompt.values for s in prefill])),
            torch.cat(images) if images else None,
        )

    def _cache_places(
        self, sequences: Seq[Sequence], positions: list[npt.NDArray[np.int64]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = self._page_size
        pages = [np.asarray(s.pages)[p // size] for s, p in zip(sequences, positions, strict=True)]
        return self._tensor(np.concatenate(pages)), self._tensor(np.concatenate(positions) % size)

    def _choose(self, plan: StepPlan, hidden: torch.Tensor) -> list[SampledToken]:
        sequences = plan.sequences
        slots = self._tensor([s.slot for s in sequences])
        if plan.prefill:
            fresh = slots[: len(plan.prefill)]
            self._states[fresh] = self._tensor([int(s.state) for s in plan.prefill])
        text = any(s.state in TEXT_STATES for s in sequences)
        drawing = any(s.sampling.temperature > 0 for s in sequences)
        wanted = [s.sampling.logprobs for s in sequences if s.sampling.logprobs is not None]
        chosen = sample(
            self.model.text.logits(hidden, None if text else CONTROL_IDS),
            self._states[slots],
            self._table,
            self._tensor(np.array([s.sampling.temperature for s in sequences], dtype=np.float32)),
            self._tensor(np.array([s.sampling.top_p for s in sequences], dtype=np.float32)),
            self._uniform(sequences) if drawing else None,
            max(wanted) if wanted else None,
        )
        values = None
        if any(s.state in VALUE_STATES for s in sequences):
            values = self.model.decode_values(hidden, chosen.kinds)
            self._values[slots] = values
        self._tokens[slots], self._kinds[slots], self._states[slots] = (
            chosen.tokens,
            chosen.kinds,
            chosen.states,
        )
        return _read(sequences, chosen, values)

    def _uniform(self, sequences: Seq[Sequence]) -> torch.Tensor:
        seeds = self._tensor(np.array([s.sampling.seed for s in sequences], dtype=np.int64))
        return uniform(seeds, self._tensor([len(s.sampled) for s in sequences]))

    def _tensor(self, values: npt.NDArray[np.generic] | list[int]) -> torch.Tensor:
        array = np.asarray(values)
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def _page_table(sequences: Seq[Sequence]) -> npt.NDArray[np.int32]:
    table = np.zeros((len(sequences), max(len(s.pages) for s in sequences)), dtype=np.int32)
    for row, sequence in zip(table, sequences, strict=True):
        row[: len(sequence.pages)] = sequence.pages
    return table


def _read(sequences: Seq[Sequence], chosen: Sampled, values: torch.Tensor | None) -> list[SampledToken]:
    tokens, kinds = chosen.tokens.tolist(), chosen.kinds.tolist()
    pairs = values.tolist() if values is not None else [(0.0, 0.0)] * len(tokens)
    logprobs = chosen.logprobs.tolist() if chosen.logprobs is not None else None
    if chosen.top_tokens is not None and chosen.top_logprobs is not None:
        tops = [
            tuple(zip(ids, logs, strict=True))
            for ids, logs in zip(chosen.top_tokens.tolist(), chosen.top_logprobs.tolist(), strict=True)
        ]
    out = []
    for i, sequence in enumerate(sequences):
        wanted = sequence.sampling.logprobs
        out.append(
            SampledToken(
                tokens[i],
                kinds[i],
                (pairs[i][0], pairs[i][1]),
                logprobs[i] if logprobs is not None and wanted is not None else None,
                tops[i][:wanted] if logprobs is not None and wanted else (),
            )
        )
    return out
