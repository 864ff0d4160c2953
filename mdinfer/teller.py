"""What tokens mean, told to those who wait: text, boxes, results, on a thread beside the engine's loop."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from mdinfer.errors import RequestFailedError
from mdinfer.task import News, Task

log = logging.getLogger(__name__)


class Teller:
    """Takes news in the order of their steps. A task is told of nothing after its end.

    `finished` is called where an answer is complete before the loop knows, `failed` where one cannot be decoded;
    both on this thread.
    """

    def __init__(self, finished: Callable[[Task], None], failed: Callable[[Task, RequestFailedError], None]) -> None:
        self._finished, self._failed = finished, failed
        self._queue = queue.SimpleQueue[list[News] | None]()
        self.thread = threading.Thread(target=self._main, name="mdinfer-teller", daemon=True)
        self.thread.start()

    def tell(self, news: list[News]) -> None:
        self._queue.put(news)

    def close(self) -> None:
        """Return when all is told."""
        self._queue.put(None)
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def _main(self) -> None:
        while (news := self._queue.get()) is not None:
            for one in news:
                self._tell(one)

    def _tell(self, news: News) -> None:
        task = news.task
        if task.handle.done:
            return
        try:
            if task.tell(news) and news.reason is None:
                self._finished(task)
        except Exception as error:
            log.exception("telling of a token failed")
            self._failed(task, RequestFailedError(f"the answer could not be decoded: {type(error).__name__}"))
