"""What a step takes of memory beside weights and cache, found by taking the worst ones there are."""

from __future__ import annotations

import math

import numpy as np
import torch

from mdinfer.decode_table import State
from mdinfer.image import Crops
from mdinfer.model.batch import KVCache
from mdinfer.model.moondream import Moondream
from mdinfer.options import EngineConfig
from mdinfer.prompts import PromptBuilder
from mdinfer.request import MAX_LOGPROBS
from mdinfer.runner import Runner
from mdinfer.sequence import SamplingParams, Sequence
from mdinfer.step_plan import Chunk, StepPlan
from mdinfer.uncut import PICTURE_BYTES, UncutPicture


def workspace_bytes(
    model: Moondream, options: EngineConfig, *, max_context: int, kv_dtype: torch.dtype, graphs: bool
) -> int:
    """Measured on a GPU, with room for pictures; 0 on a CPU, whose allocator keeps no account.

    Raises torch.OutOfMemoryError.
    """
    if model.device.type != "cuda":
        return 0
    with torch.cuda.device(model.device):
        steps = _measured(model, options, max_context=max_context, kv_dtype=kv_dtype)
    return whole_workspace(model, options, steps=steps, graphs=graphs)


def whole_workspace(model: Moondream, options: EngineConfig, *, steps: int, graphs: bool) -> int:
    """Of what the worst steps take, with room for pictures; `graphs` have a workspace of their own."""
    config, pictures = model.config, options.image_cache + options.max_batch_size
    features = pictures * config.vision.positions * config.text.dim * model.dtype.itemsize
    return steps * (1 + graphs) + features


def _measured(model: Moondream, options: EngineConfig, *, max_context: int, kv_dtype: torch.dtype) -> int:
    torch.cuda.synchronize(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    cache = worst_steps(model, options, max_context=max_context, kv_dtype=kv_dtype)
    torch.cuda.synchronize(model.device)
    most = torch.cuda.max_memory_allocated(model.device) - before - cache
    torch.cuda.empty_cache()
    return max(0, most)


def worst_steps(model: Moondream, options: EngineConfig, *, max_context: int, kv_dtype: torch.dtype) -> int:
    """A vision pass of as many crops and a prefill of as many positions as a step may have.

    All rows sample, with log-probabilities; an image, which is never cut, may take more than `prefill_tokens`, and
    the rows that decode come on top. Where the device cuts pictures up, which it does one after another, there is one
    of the largest size that it takes. Returns the bytes of the cache that this took, which is given back.
    """
    text, size = model.config.text, options.page_size
    tokens = max(options.prefill_tokens, model.config.vision.positions + 1) + options.max_batch_size
    lengths = _lengths(tokens, min(max_context, len(model.text.rope)), options.max_batch_size)
    counts = [-(-length // size) for length in lengths]
    cache = KVCache.allocate(text, pages=sum(counts), page_size=size, dtype=kv_dtype, device=model.device)
    runner = Runner(model, cache, max_batch_size=len(lengths), vision_crops=options.vision_crops)
    side, tiles = model.config.vision.crop_size, max(1, options.vision_crops - 1)
    if options.resize == "device":
        side = math.isqrt(min(options.max_image_pixels, PICTURE_BYTES // 3))
        blank = torch.zeros(side, side, 3, dtype=torch.uint8)
        runner.encode([UncutPicture(pixels=blank, tiling=(1, tiles), digest=b"")])
    else:
        pixels = np.zeros((1 + tiles, side, side, 3), dtype=np.uint8)
        runner.encode([Crops(pixels=pixels, tiling=(1, tiles), width=side, height=side, digest=b"")])
    chunks, page = [], 0
    for slot, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        prompt = PromptBuilder(model.config.tokenizer.bos_id, 0).text([_plain_token(text.vocab_size)] * (length - 1))
        sequence = Sequence(
            prompt=prompt.build(),
            state=State.ANSWER,
            sampling=SamplingParams(temperature=1.0, top_p=0.9, logprobs=MAX_LOGPROBS),
            max_positions=length + 1,
            pages=list(range(page, page + count)),
            slot=slot,
            arrival=slot,
        )
        chunks.append(Chunk(sequence, 0, length, True))
        page += count
    runner.launch(StepPlan(prefill=tuple(chunks))).read()
    return cache.nbytes


def _lengths(tokens: int, longest: int, sequences: int) -> list[int]:
    """Equal prompts that come near `tokens` positions in all: as many as may run together, for each of them samples."""
    count = min(sequences, tokens)
    return [min(longest, tokens // count)] * count


def _plain_token(vocab_size: int) -> int:
    return vocab_size - 1
