"""How many threads share an operation on a CPU, for one thread of the process alone."""

from __future__ import annotations

import threading

import torch

_LOCK = threading.Lock()


def set_own_threads(count: int) -> None:
    """The operations of the calling thread are shared among so many.

    torch keeps a number for each thread, which it takes from the process's when the thread first asks, and
    `set_num_threads` sets both. So the process's is put back, by a thread to which nothing else belongs.
    """
    with _LOCK:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        other = threading.Thread(target=torch.set_num_threads, args=(before,))
        other.start()
        other.join()
