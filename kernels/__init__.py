"""Tensor operations of the model, each with its contract, its checks and its torch body in one file.

On CUDA tensors the compiled bodies of `_triton` run. The torch bodies are the CPU backend and the definition that a
compiled body must meet. Nothing here knows of requests, schedules or checkpoints; importing it needs neither a GPU
nor Triton.

Shape letters, used in names such as `x_TD`:
    T tokens of the step     S sequences     B rows that sample     D model dim        V vocabulary
    H heads                  K head dim      P pages                L slots of a page  X = 3 H K
    E experts                A experts a token takes                I expert inner dim
    N crops                  G patches along a crop's side          C vision dim
"""

from mdinfer.kernels.attention import AttentionBatch, paged_attention
from mdinfer.kernels.cache import LayerCache
from mdinfer.kernels.embedding import TokenKind, ValueEncoder, encode_values, fourier_features, input_embeddings
from mdinfer.kernels.epilogue import bias_gelu, bias_residual, linear_gelu, linear_gelu_rows, linear_residual
from mdinfer.kernels.linear import linear
from mdinfer.kernels.linear_fp8 import fits_fp8, linear_fp8
from mdinfer.kernels.moe import ExpertWeights, Routing, moe_experts, moe_route
from mdinfer.kernels.norm import add_layer_norm, layer_norm, layer_norm_rows
from mdinfer.kernels.pages import copy_pages
from mdinfer.kernels.qkv import TokenPlaces, qkv_epilogue, rope_table
from mdinfer.kernels.quantise import Float8Rows
from mdinfer.kernels.region import RegionHeads, decode_coordinate, decode_size, region_values
from mdinfer.kernels.resize import ResizeTable, resize_arrays, resize_lanczos
from mdinfer.kernels.sample import DecodeTable, Draws, Sampled, nucleus, sample, uniform
from mdinfer.kernels.vision import crop_attention, crop_patches, joined_map

__all__ = [
    "AttentionBatch",
    "DecodeTable",
    "Draws",
    "ExpertWeights",
    "Float8Rows",
    "LayerCache",
    "RegionHeads",
    "ResizeTable",
    "Routing",
    "Sampled",
    "TokenKind",
    "TokenPlaces",
    "ValueEncoder",
    "add_layer_norm",
    "bias_gelu",
    "bias_residual",
    "copy_pages",
    "crop_attention",
    "crop_patches",
    "decode_coordinate",
    "decode_size",
    "encode_values",
    "fits_fp8",
    "fourier_features",
    "input_embeddings",
    "joined_map",
    "layer_norm",
    "layer_norm_rows",
    "linear",
    "linear_fp8",
    "linear_gelu",
    "linear_gelu_rows",
    "linear_residual",
    "moe_experts",
    "moe_route",
    "nucleus",
    "paged_attention",
    "qkv_epilogue",
    "region_values",
    "resize_arrays",
    "resize_lanczos",
    "rope_table",
    "sample",
    "uniform",
]
