"""What an engine is asked before anybody else asks it."""

from __future__ import annotations

import numpy as np

from mdinfer.request import Detect, Query, Request


def warm_up_requests(*, pictures: bool) -> list[Request]:
    """Short requests that take, between them, every path through a step: text and pictures, greedy and drawn,
    log-probabilities, coordinates and sizes, and what was asked before.
    """
    text: list[Request] = [
        Query(question="?", temperature=0, max_tokens=2),
        Query(question="?", temperature=1, top_p=0.9, max_tokens=2),
    ]
    if not pictures:
        return text
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    return [
        *text,
        Query(image=grey, question="?", reasoning=True, temperature=0, max_tokens=2, logprobs=1),
        Query(image=grey, question="?", spatial_refs=[(0.5, 0.5), (0.2, 0.2, 0.8, 0.8)], max_tokens=2),
        Detect(image=grey, object="?", max_objects=1),
    ]
