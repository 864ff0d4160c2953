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
from mdinfer.sequence import SampledToken, Sequence
from mdinfer.step_plan import Chunk, PageCopy, StepPlan


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
        """A token for each chunk that samples, in the order of `plan.chunks`.

        Where it raises, the step can be done over, as a whole or in parts.
        """
        pixels = [picture.crops for picture in plan.pictures if picture.crops is not None]
        for picture, rows in zip(plan.pictures, self.encode(pixels), strict=True):
            picture.encode(rows)
        self._copy(plan.copies)
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

    def _copy(self, copies: Seq[PageCopy]) -> None:
        if copies:
            self.cache.copy(*self._tensor(np.array(copies, dtype=np.int64).T.copy()))

    def _forward_batch(self, plan: StepPlan) -> ForwardBatch:
        chunks = plan.chunks
        parts = [self._known_rows(plan.prefill)] if plan.prefill else []
        if plan.decode:
            decoding = [chunk.sequence for chunk in plan.decode]
            slots = self._tensor([s.slot for s in decoding])
            tokens, kinds, _ = self._next[:, slots]
            if any(s.state in VALUE_STATES for s in decoding):
                rows = self.model.embed(tokens, kinds, self._values[slots], None)
            else:
                rows = input_embeddings(self.model.text.wte, tokens)
            parts.append(rows)
        queries = tuple(chunk.end - chunk.start for chunk in chunks)
        starts = np.cumsum((0, *queries), dtype=np.int32)
        position, page, slot, visible = self._tensor(self._rows(plan))
        return ForwardBatch(
            x=torch.cat(parts) if len(parts) > 1 else parts[0],
            places=TokenPlaces.of(position, page, slot, self.model.text.rope),
            attention=AttentionBatch(
                starts=self._tensor(starts),
                pages=self._tensor(_page_table([chunk.sequence for chunk in chunks])),
                visible=visible.to(torch.int32),
                queries=queries,
            ),
            last=self._tensor(starts[1:][[chunk.samples for chunk in chunks]] - 1),
        )

    def _rows(self, plan: StepPlan) -> npt.NDArray[np.int64]:
        """(4, T): position, cache page, slot there, and visible keys of each row; one upload a step."""
        size = self._page_size
        parts = []
        for s, start, end, *_ in plan.prefill:
            position = np.arange(start, end)
            visible = position + 1
            asked = s.prompt.visible[start:end]
            visible[: len(asked)] = asked
            parts.append(np.stack((position, np.asarray(s.pages)[position // size], position % size, visible)))
        at = [(start, s.pages) for s, start, *_ in plan.decode]
        if at:
            parts.append(np.array([(p, pages[p // size], p % size, p + 1) for p, pages in at]).T)
        return np.concatenate(parts, axis=1) if len(parts) > 1 else np.ascontiguousarray(parts[0])

    def _known_rows(self, prefill: Seq[Chunk]) -> torch.Tensor:
        inputs = [_known(chunk) for chunk in prefill]
        tokens, kinds, values = (np.concatenate(column) for column in zip(*inputs, strict=True))
        images = [
            picture.features
            for chunk in prefill
            for (start, end), picture in zip(chunk.sequence.prompt.blocks, chunk.sequence.pictures, strict=True)
            if chunk.start <= start and end <= chunk.end and picture.features is not None
        ]
        rows: torch.Tensor = self.model.embed(
            self._tensor(tokens), self._tensor(kinds), self._tensor(values), torch.cat(images) if images else None
        )
        return rows

    def _choose(self, plan: StepPlan, hidden: torch.Tensor) -> list[SampledToken]:
        sequences = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        if not sequences:
            return []
        slots = self._tensor([s.slot for s in sequences])
        fresh = [chunk.sequence for chunk in plan.prefill if chunk.samples]
        if fresh:
            self._next[2, slots[: len(fresh)]] = self._tensor([int(s.state) for s in fresh])
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


def _known(chunk: Chunk) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Tokens, kinds and values of a chunk of the prompt, or of what was sampled after it."""
    s, start, end, *_ = chunk
    prompt, asked = s.prompt, len(s.prompt)
    known = prompt.tokens[start:end], prompt.kinds[start:end], prompt.values[start:end]
    sampled = s.sampled[max(0, start - asked) : max(0, end - asked)]
    if not sampled:
        return known
    return (
        np.concatenate((known[0], np.array([t.token for t in sampled], dtype=np.int64))),
        np.concatenate((known[1], np.array([t.kind for t in sampled], dtype=np.int64))),
        np.concatenate((known[2], np.array([t.value for t in sampled], dtype=np.float32))),
    )


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
