"""Weights on disk -> parameters of the model.

    source.py            where a checkpoint is and what it is: `find_checkpoint`, `Checkpoint`
    hub.py               the same for a Hugging Face repository id: download it first
    tensors.py           one stored tensor, a block of it, the buffer blocks are read into
    safetensors_file.py  headers, index and bytes of safetensors files
    torch_file.py        the same for `.pt` files
    layouts.py           names in the files <-> names of parameters
    plan.py              every name, shape and type checked before a byte is copied
    ahead.py             blocks read by threads while others are copied
    load.py              the copying, in blocks: memory stays at the size of the parameters
    quantise.py          float8 weights and int8 experts with a scale per output channel, int4 experts with two
                         numbers per 128 inputs
    random.py            weights without a checkpoint

It knows parameters by name and shape only and imports nothing of the model but the layout of int4.
"""

from mdinfer.checkpoint.quantise import dequantise_rows, quantise_channels, quantise_groups, quantise_rows
from mdinfer.checkpoint.random import random_weights
from mdinfer.checkpoint.source import Checkpoint, Layout, Precision, find_checkpoint

__all__ = [
    "Checkpoint",
    "Layout",
    "Precision",
    "dequantise_rows",
    "find_checkpoint",
    "quantise_channels",
    "quantise_groups",
    "quantise_rows",
    "random_weights",
]
