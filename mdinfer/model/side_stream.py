"""A second stream of a GPU, for work beside which something else can be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class SideStream:
    """Work that `begin` starts may read all that was launched before it; what it made may be read after `join`.

    Memory that either stream has freed is taken again by that stream alone. So between the two calls nothing that the
    side reads may be freed, nor, after them, anything that it made before all that reads it is launched. That holds
    for a failure, too: `begin` joins where the work raises, and so must whoever fails before its own `join`. A
    recording that is not joined would end in an error of its own, in place of the one that tells what was wrong.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch types no __init__

    def begin(self, work: Callable[[], T]) -> T:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        try:
            with torch.cuda.stream(self._stream):
                return work()
        except BaseException:
            self.join()
            raise

    def join(self) -> None:
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
