"""The trainer's forward and the engine's compute the same model from the exported files."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
import torch

from benchmarks.demo.dialogue import Dialogue, Exchange, Grounded, ask
from benchmarks.demo.export import published_tensors
from benchmarks.demo.forward import Places, decode, embed, row_mask, see, token_logits, value_logits
from benchmarks.demo.pictures import Scene, draw_scene, paint
from benchmarks.demo.rows import RowBuilder, Rows, Speller
from mdinfer.checkpoint import find_checkpoint
from mdinfer.image import Crops, prepare_image
from mdinfer.kernels import AttentionBatch, TokenKind, TokenPlaces
from mdinfer.kernels.region import coordinate_logits, size_logits
from mdinfer.loading import DEMO_DIRECTORY
from mdinfer.model.batch import ForwardBatch, KVCache
from mdinfer.model.moondream import Moondream

PAGE = 32


@pytest.fixture(scope="module")
def model() -> Moondream:
    """As the engine loads it on a CPU: the exported bfloat16 weights in float32."""
    checkpoint = find_checkpoint(DEMO_DIRECTORY)
    model = Moondream(checkpoint.config)
    checkpoint.load_into(model.weights(), progress=False)
    return model


def scenes(pictures: int) -> list[Scene]:
    draw = np.random.default_rng(11)
    return [draw_scene(draw, largest=600) for _ in range(pictures)]


def crops_of(model: Moondream, pictures: int) -> list[Crops]:
    config = model.config.vision
    return [prepare_image(paint(scene), config, exif=False, max_pixels=1 << 24) for scene in scenes(pictures)]


def packed(model: Moondream, dialogue: Dialogue, pictures: int) -> Rows:
    words = tokenizers.Tokenizer.from_file(str(DEMO_DIRECTORY / "tokenizer.json"))
    speller = Speller(words, model.config)
    builder = RowBuilder(1)
    builder.begin(speller.opening(pictures))
    builder.segment(speller.body(dialogue))
    return builder.finish()


def trainer_hidden(model: Moondream, rows: Rows, crops: list[Crops]) -> torch.Tensor:
    """(T, D), with the crops as the trainer keeps them: a single tile's is not doubled."""
    kept = [c.pixels[:1] if c.tiling == (1, 1) else c.pixels for c in crops]
    starts = np.cumsum([0, *map(len, kept)])
    tiles = [start + np.minimum(np.arange(5), len(k) - 1) for start, k in zip(starts, kept, strict=False)]
    images = torch.zeros(0, model.config.vision.positions, model.config.text.dim)
    if crops:
        pixels = torch.from_numpy(np.concatenate(kept))
        images = see(model, pixels, torch.from_numpy(np.stack(tiles)), [c.tiling for c in crops])
    arrays = (rows.tokens, rows.kinds, rows.values, rows.group, rows.segment, rows.position, rows.visible)
    tokens, kinds, values, group, segment, position, visible = map(torch.from_numpy, arrays)
    x = embed(model, tokens, kinds, values, images)
    mask = row_mask(group, segment, position, visible)
    return decode(model, x, Places(position, model.config.text.head_dim), mask)[0][0]


def engine_hidden(model: Moondream, rows: Rows, crops: list[Crops], length: int) -> torch.Tensor:
    """(T, D) of the first `length` positions, prefilled into a paged cache."""
    images = None
    if crops:
        stacked = torch.from_numpy(np.concatenate([c.pixels for c in crops]))
        images = torch.cat(model.vision(stacked, [c.tiling for c in crops], 13))
    tokens, kinds, values, visible = (
        torch.from_numpy(a[0, :length]) for a in (rows.tokens, rows.kinds, rows.values, rows.visible)
    )
    position, pages = torch.arange(length), -(-length // PAGE)
    cache = KVCache.allocate(
        model.config.text, pages=pages, page_size=PAGE, dtype=torch.float32, device=torch.device("cpu")
    )
    batch = ForwardBatch(
        x=model.embed(tokens, kinds, values, images),
        places=TokenPlaces.of(position, position // PAGE, position % PAGE, model.text.rope),
        attention=AttentionBatch(
            starts=torch.tensor([0, length], dtype=torch.int32),
            pages=torch.arange(pages, dtype=torch.int32)[None],
            visible=visible.to(torch.int32),
            queries=(length,),
        ),
        last=position,
    )
    hidden: torch.Tensor = model.text(batch, cache)
    return hidden


@pytest.mark.parametrize(
    ("pictures", "dialogue"),
    [
        (0, ask("t", "Write a short poem about the moon.", "The moon climbs up, a silver light,")),
        (1, Dialogue(task="t", skill="caption", length="long", exchanges=(Exchange(question="", answer="A."),))),
        (1, ask("t", "How many?", "1", trace=("I see ", Grounded("one circle", ((0.25, 0.5),)), "."))),
        (2, ask("t", "What is this?", "A red circle.", refs=((0.1, 0.2, 0.5, 0.6),))),
    ],
    ids=["text", "picture", "grounded", "two-pictures-and-a-box"],
)
@torch.inference_mode()
def test_the_same_logits(model: Moondream, pictures: int, dialogue: Dialogue) -> None:
    """Bound, relative in root mean square: 1e-4.

    Both run in float32 (unit roundoff 6e-8) and sum in other orders: a dot product of n terms errs by up to
    sqrt(n) * 6e-8, that is 1.7e-6 for the widest, n = 768; some 60 products follow one another from pixels to logits,
    which, if all errors added up, is 1e-4. Measured: 1e-6.
    """
    rows, crops = packed(model, dialogue, pictures), crops_of(model, pictures)
    length = int((rows.group[0] >= 0).sum())
    trained = trainer_hidden(model, rows, crops)[:length]
    served = engine_hidden(model, rows, crops, length)
    for a, b in (
        (token_logits(model, trained), model.text.logits(served)),
        (value_logits(model, trained, TokenKind.COORD)[:, 0], coordinate_logits(served, model.region.heads())),
        (value_logits(model, trained, TokenKind.SIZE), size_logits(served, model.region.heads())),
    ):
        assert (a - b).norm() / b.norm() < 1e-4


def test_export_holds_the_weights_under_their_published_names(model: Moondream) -> None:
    tensors = published_tensors(model)
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    for name in ("model.text.blocks.0.attn.tau.wq", "model.text.blocks.5.mlp.router.bias", "model.vision.pos_emb"):
        assert name in tensors
    stored = {s.name for s in find_checkpoint(DEMO_DIRECTORY).tensors}
    assert set(tensors) == stored
