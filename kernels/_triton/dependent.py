"""Programmatic dependent launch: a kernel is started while the one before it ends, and waits for that one itself."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_earlier(PDL: tl.constexpr):
    """The first statement of every kernel, before any program may end: what earlier kernels wrote is there after it,
    and the next kernel may be started, which waits in its turn until this one has ended.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
