"""Runs a step plan on the model: pictures to features, rows through the decoder, hidden states to tokens.

What a sequence feeds into its next step (token, kind, value, decoding state) stays on the device, in the row of
its batch slot, so that a step needs nothing of the step before it from the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq

import numpy as np
import torch

from mdinfer.cuda_graphs import DecodeGraphs, GraphPool, VisionGraphs
from mdinfer.decode_table import decode_table
from mdinfer.flight import Flight, Stopwatch
from mdinfer.image import Crops
from mdinfer.kernels import AttentionBatch, Sampled, TokenPlaces, input_embeddings, sample
from mdinfer.kernels.sample import CONTROL_IDS
from mdinfer.model.batch import ForwardBatch, KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.model.side_stream import SideStream
from mdinfer.page_tables import PageTables
from mdinfer.picture_cutter import PictureCutter
from mdinfer.pictures import LoadedPicture
from mdinfer.step_input import Needs, StepInput, step_arrays
from mdinfer.step_plan import Chunk, PageCopy, StepPlan
from mdinfer.uncut import UncutPicture
from mdinfer.upload import upload


class Runner:
    """`graphs`: run steps that only decode, and the vision tower, on fixed buffers, recorded where there is a GPU.
    `two_streams`: there, in steps that only decode, compute attention and MLP of a layer side by side.
    """

    def __init__(
        self,
        model: Moondream,
        cache: KVCache,
        *,
        max_batch_size: int,
        vision_crops: int,
        graphs: bool = False,
        two_streams: bool = False,
    ) -> None:
        self.model, self.cache = model, cache
        self.device = model.device
        self._side = SideStream(self.device) if two_streams and self.device.type == "cuda" else None
        self._vision_crops = vision_crops
        self._cutter = PictureCutter(model.config.vision, self.device)
        longest = -(-len(model.text.rope) // cache.page_size)  # pages of a sequence
        self._tables = PageTables(max_batch_size, min(longest, cache.k.shape[1]))
        table = decode_table(model.config.tokenizer)
        self.follows: list[list[int]] = table.follows.tolist()
        self._table = table.to(self.device)
        # By batch slot: the token of the next step, its TokenKind, the decoding state; and the value it carries.
        # One slot more than there are belongs to rows that stand for nothing.
        self._next = torch.zeros(3, max_batch_size + 1, dtype=torch.int64, device=self.device)
        self._values = torch.zeros(max_batch_size + 1, 2, device=self.device)
        self._decode: DecodeGraphs | None = None
        self._vision: VisionGraphs | None = None
        if graphs:
            pool = GraphPool(self.device)
            self._decode = DecodeGraphs(
                self._compute,
                self._tables,
                page_size=cache.page_size,
                most=max_batch_size,
                idle_slot=max_batch_size,
                device=self.device,
                pool=pool,
            )
            self._vision = VisionGraphs(model.vision, vision_crops, self.device, pool)

    @torch.inference_mode()
    def record_graphs(self, *, progress: bool) -> None:
        """Record all graphs before the first request comes."""
        if self._decode is None or self._vision is None:
            return
        from tqdm import tqdm

        total = self._decode.count + self._vision.count
        with tqdm(total=total, desc="recording graphs", unit="graph", disable=not progress) as bar:
            for _ in itertools.chain(self._vision.record(), self._decode.record()):
                bar.update()

    @torch.inference_mode()
    def launch(self, plan: StepPlan, *, sparing: bool = False) -> Flight:
        """Begin a step. `sparing` takes as little memory beside the cache as it can, and longer.

        Where it raises, the step can be done over by `StepPlan.singly`, which starts from nothing that this may have
        changed. Steps come off the device in the order in which they were launched.
        """
        vision = self._see(plan.pictures, 1 if sparing else self._vision_crops)
        self._copy(plan.copies)
        needs = Needs.of(plan)
        if self._decode is not None and self._decode.takes(plan, needs):
            chosen, values = self._decode.run(plan, needs)
        else:
            arrays = step_arrays(plan, self._tables, self.cache.page_size)
            queries = tuple(chunk.end - chunk.start for chunk in plan.chunks)
            step = StepInput.of(queries, upload(arrays, self.device), needs)
            chosen, values = self._compute(step, needs, _images(plan.prefill))
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        return Flight(sampling, chosen, values, self.device, vision)

    @torch.inference_mode()
    def encode(self, pictures: Seq[Crops | UncutPicture], *, sparing: bool = False) -> list[torch.Tensor]:
        """Features (positions, D) of each picture; all crops go through the tower together."""
        return self._features(pictures, 1 if sparing else self._vision_crops)

    def _see(self, pictures: Seq[LoadedPicture], crops_per_pass: int) -> Stopwatch | None:
        """Have those encoded that are not, for a step may be done over; and say how to learn how long that took."""
        pictures = [picture for picture in pictures if not picture.encoded]
        if not pictures:
            return None
        watch = Stopwatch(self.device)
        watch.start()
        crops = [picture.crops for picture in pictures if picture.crops is not None]
        for picture, rows in zip(pictures, self._features(crops, crops_per_pass), strict=True):
            picture.encode(rows)
        watch.stop()
        return watch

    def _features(self, pictures: Seq[Crops | UncutPicture], crops_per_pass: int) -> list[torch.Tensor]:
        if not pictures:
            return []
        crops = self._crops(pictures)
        see = self._vision.crop_features if self._vision is not None else None
        features: list[torch.Tensor] = self.model.vision(crops, [p.tiling for p in pictures], crops_per_pass, see)
        return features

    def _crops(self, pictures: Seq[Crops | UncutPicture]) -> torch.Tensor:
        """Of all pictures, (N, side, side, 3) uint8 on the device; those that come whole are cut there."""
        cut = [picture.pixels for picture in pictures if isinstance(picture, Crops)]
        if len(cut) == len(pictures):
            return upload([np.concatenate(cut)], self.device)[0]
        side = self.model.config.vision.crop_size
        counts = [picture.count for picture in pictures]
        crops = torch.empty(sum(counts), side, side, 3, dtype=torch.uint8, device=self.device)
        for picture, part in zip(pictures, torch.split(crops, counts), strict=True):
            if isinstance(picture, Crops):
                part.copy_(upload([picture.pixels], self.device)[0])
            else:
                self._cutter.cut(picture, part)
        return crops

    def _copy(self, copies: Seq[PageCopy]) -> None:
        if copies:
            source, into = upload(list(np.array(copies, dtype=np.int64).T), self.device)
            self.cache.copy(source, into)

    def _compute(
        self, step: StepInput, needs: Needs, images: torch.Tensor | None
    ) -> tuple[Sampled | None, torch.Tensor | None]:
        """The choice of each row that samples, and its values; a function of tensors on the device alone.

        `images`: features of the pictures in the rows, one after another.
        """
        hidden = self.model.text(self._forward_batch(step, needs, images), self.cache)
        if not len(step.slots):
            return None, None
        states = self._next[2, step.slots]
        if len(step.states):
            states[: len(step.states)] = step.states
        logits = self.model.text.logits(hidden, None if needs.text else CONTROL_IDS)
        chosen = sample(logits, states, self._table, step.draws, needs.logprobs)
        values = self.model.decode_values(hidden, chosen.kinds) if needs.values else None
        self._next[:, step.slots] = chosen.choice[:3]
        if values is not None:
            self._values[step.slots] = values
        return chosen, values

    def _forward_batch(self, step: StepInput, needs: Needs, images: torch.Tensor | None) -> ForwardBatch:
        parts = []
        if len(step.tokens):
            parts.append(self.model.embed(step.tokens, step.kinds, step.values, images))
        if len(step.feeding):
            tokens, kinds, _ = self._next[:, step.feeding]
            if needs.fed:
                parts.append(self.model.embed(tokens, kinds, self._values[step.feeding], None))
            else:
                parts.append(input_embeddings(self.model.text.wte, tokens))
        position, page, slot = step.places
        return ForwardBatch(
            x=torch.cat(parts) if len(parts) > 1 else parts[0],
            places=TokenPlaces.of(position, page, slot, self.model.text.rope),
            attention=AttentionBatch(starts=step.starts, pages=step.pages, visible=step.visible, queries=step.queries),
            last=step.last,
            side=None if len(step.tokens) else self._side,
        )


def _images(prefill: Seq[Chunk]) -> torch.Tensor | None:
    """Features of the pictures within the chunks, in order."""
    images = [
        picture.features
        for chunk in prefill
        for (start, end), picture in zip(chunk.sequence.prompt.blocks, chunk.sequence.pictures, strict=True)
        if chunk.start <= start and end <= chunk.end and picture.features is not None
    ]
    return torch.cat(images) if images else None
