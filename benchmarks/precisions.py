"""The types behind the names of precisions that the engine has now; `benchmarks/costs.py` counts further ones."""

from __future__ import annotations

import torch

from mdinfer.kernels.int4 import INT4
from mdinfer.kernels.int8 import INT8

EXPERT_TYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": INT8, "int4": INT4}
LINEAR_TYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
KV_TYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
