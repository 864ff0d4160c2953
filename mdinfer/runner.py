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
from mdinfer.image import Crops
from mdinfer.kernels import AttentionBatch, Draws, Sampled, TokenPlaces, input_embeddings, sample
from mdinfer.kernels.sample import CONTROL_IDS
from mdinfer.model.batch import ForwardBatch, KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.scheduler import StepPlan
from mdinfer.sequence import SampledToken, Sequence


class Runner:
    def __init__(self, model: Moondream, cache: KVCache, *, max_batch_size: int, vision_crops: int) -> None:
        self.model, self.cache = model, cache
        self.device = model.device
        self._page_size = cache.page_size
        self._vision_crops = vision_crops
        table = decode_table(model.config.tokenizer)
        self.follows: list[list[int]] = table.follows.tolist()
        self._table = table.to(self.device)
        # By batch slot: the token of the next step, its TokenKind, the decoding state; and the value it carries.
        self._next = torch.zeros(3, max_batch_size, dtype=torch.int64, device=self.device)
        self._values = torch.zeros(max_batch_size, 2, device=self.device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[SampledToken]:
        """Advance every sequence of the plan by one token; the results are in the order of `plan.sequences`.

        Where it raises, a decoding sequence is as it was before: the step can be done over without those at fault.
        """
        fresh = [(s, i, p) for s in plan.prefill for i, p in enumerate(s.pictures) if not isinstance(p, torch.Tensor)]
        for (s, i, _), rows in zip(fresh, self.encode([p for _, _, p in fresh]), strict=True):
            s.pictures[i] = rows
        hidden = self.model.text(self._forward_batch(plan), self.cache)
        return self._choose(plan, hidden)

    @torch.inference_mode()
    def encode(self, pictures: Seq[Crops]) -> list[torch.Tensor]:
        """Features (positions, D) of each picture; all crops go through the tower together."""
        if not pictures:
            return []
        crops = torch.from_numpy(np.concatenate([p.pixels for p in pictures])).to(self.device)
        features: list[torch.Tensor] = self.model.vision(crops, [p.tiling for p in pictures], self._vision_crops)
        return features

    def _forward_batch(self, plan: StepPlan) -> ForwardBatch:
        parts = [self._prompt_rows(plan.prefill)] if plan.prefill else []
        if plan.decode:
            slots = self._tensor([s.slot for s in plan.decode])
            tokens, kinds, _ = self._next[:, slots]
            if any(s.state in VALUE_STATES for s in plan.decode):
                rows = self.model.embed(tokens, kinds, self._values[slots], None)
            else:
                rows = input_embeddings(self.model.text.wte, tokens)
            parts.append(rows)
        queries = tuple(len(s.prompt) for s in plan.prefill) + (1,) * len(plan.decode)
        starts = np.cumsum((0, *queries), dtype=np.int32)
        position, page, slot, visible = self._tensor(self._rows(plan))
        return ForwardBatch(
            x=torch.cat(parts) if len(parts) > 1 else parts[0],
            places=TokenPlaces.of(position, page, slot, self.model.text.rope),
            attention=AttentionBatch(
                starts=self._tensor(starts),
                pages=self._tensor(_page_table(plan.sequences)),
                visible=visible.to(torch.int32),
                queries=queries,
            ),
            last=self._tensor(starts[1:] - 1),
        )

    def _rows(self, plan: StepPlan) -> npt.NDArray[np.int64]:
        """(4, T): position, cache page, slot there, and visible keys of each row; one upload a step."""
        size = self._page_size
        parts = []
        for s in plan.prefill:
            position = np.arange(len(s.prompt))
            parts.append(np.stack((position, np.asarray(s.pages)[position // size], position % size, s.prompt.visible)))
        at = [(s.length - 1, s.pages) for s in plan.decode]
        if at:
            parts.append(np.array([(p, pages[p // size], p % size, p + 1) for p, pages in at]).T)
        return np.concatenate(parts, axis=1) if len(parts) > 1 else np.ascontiguousarray(parts[0])

    def _prompt_rows(self, prefill: Seq[Sequence]) -> torch.Tensor:
        images = [p for s in prefill for p in s.pictures if isinstance(p, torch.Tensor)]
        return self.model.embed(
            self._tensor(np.concatenate([s.prompt.tokens for s in prefill])),
            self._tensor(np.concatenate([s.prompt.kinds for s in prefill])),
            self._tensor(np.concatenate([s.prompt.values for s in prefill])),
            torch.cat(images) if images else None,
        )

    def _choose(self, plan: StepPlan, hidden: torch.Tensor) -> list[SampledToken]:
        sequences = plan.sequences
        slots = self._tensor([s.slot for s in sequences])
        if plan.prefill:
            fresh = slots[: len(plan.prefill)]
            self._next[2, fresh] = self._tensor([int(s.state) for s in plan.prefill])
        text = any(s.state in TEXT_STATES for s in sequences)
        drawing = any(s.sampling.temperature > 0 for s in sequences)
        wanted = [s.sampling.logprobs for s in sequences if s.sampling.logprobs is not None]
        chosen = sample(
            self.model.text.logits(hidden, None if text else CONTROL_IDS),
            self._next[2, slots],
            self._table,
            self._draws(sequences) if drawing else None,
            max(wanted) if wanted else None,
        )
        values = None
        if any(s.state in VALUE_STATES for s in sequences):
            values = self.model.decode_values(hidden, chosen.kinds)
        read = _read(sequences, chosen, values)
        # What the next step starts from changes last: a step that fails before can be done over.
        self._next[:, slots] = chosen.choice[:3]
        if values is not None:
            self._values[slots] = values
        return read

    def _draws(self, sequences: Seq[Sequence]) -> Draws:
        numbers = [(s.sampling.temperature, s.sampling.top_p) for s in sequences]
        temperature, top_p = self._tensor(np.array(numbers, dtype=np.float32).T.copy())
        seeds, steps = self._tensor(np.array([(s.sampling.seed, len(s.sampled)) for s in sequences]).T.copy())
        return Draws(temperature=temperature, top_p=top_p, seeds=seeds, steps=steps)

    def _tensor(self, values: npt.NDArray[np.generic] | list[int]) -> torch.Tensor:
        array = np.asarray(values)
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def _page_table(sequences: Seq[Sequence]) -> npt.NDArray[np.int32]:
    table = np.zeros((len(sequences), max(len(s.pages) for s in sequences)), dtype=np.int32)
    for row, sequence in zip(table, sequences, strict=True):
        row[: len(sequence.pages)] = sequence.pages
    return table


def _read(sequences: Seq[Sequence], chosen: Sampled, values: torch.Tensor | None) -> list[SampledToken]:
    tokens, kinds, _, sound = chosen.choice.tolist()
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
                bool(sound[i]),
            )
        )
    return out
