"""The engine's loop: one thread that plans a step, runs it, commits its tokens, until it is closed.

Everything the scheduler and the runner hold is touched by this thread alone; others leave messages in its inbox.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch

from mdinfer.errors import EngineDeadError, MdinferError, RequestCancelledError, RequestFailedError
from mdinfer.image import Crops
from mdinfer.pictures import PictureStore
from mdinfer.runner import Runner
from mdinfer.scheduler import Scheduler
from mdinfer.sequence import SampledToken, Sequence
from mdinfer.step_plan import StepPlan
from mdinfer.task import Task

log = logging.getLogger(__name__)

_PICTURES = 64  # of which features are kept for requests to come


class EngineLoop:
    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler, self._runner = scheduler, runner
        self._tasks: dict[Sequence, Task] = {}
        self._pictures = PictureStore(_PICTURES)
        self._inbox: deque[tuple[Callable[[], None], Callable[[EngineDeadError], None]]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="mdinfer-engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive() and self._death is None and not self._closing

    def add(self, task: Task) -> None:
        """Schedule a task whose pictures are ready."""
        self._send(lambda: self._admit(task), task.handle._fail)

    def cancel(self, task: Task) -> None:
        self._send(lambda: self._end(task, RequestCancelledError("the request was cancelled")), task.handle._fail)

    def encode(self, picture: Crops) -> Future[torch.Tensor]:
        """Features of a picture, made between two steps."""
        done: Future[torch.Tensor] = Future()

        def work() -> None:
            try:
                [features] = self._runner.encode([picture])
            except Exception as error:
                log.exception("encoding a picture failed")
                done.set_exception(RequestFailedError(f"encoding the picture failed: {type(error).__name__}"))
            else:
                done.set_result(features)

        self._send(work, done.set_exception)
        return done

    def close(self) -> None:
        """Stop after the step that runs; unfinished requests end with EngineDeadError. Waits for the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _send(self, work: Callable[[], None], abandon: Callable[[EngineDeadError], None]) -> None:
        """Have the loop's thread do `work`; if it never will, `abandon` hears why."""
        with self._wake:
            alive = not self._closing and self._death is None
            if alive:
                self._inbox.append((work, abandon))
                self._wake.notify()
        if not alive:
            abandon(self.dead())

    def dead(self) -> EngineDeadError:
        """Why nothing more can be asked of this loop."""
        if self._death is not None:
            return EngineDeadError(f"the engine's loop failed ({type(self._death).__name__}): load the engine anew")
        return EngineDeadError("the engine is closed")

    def _main(self) -> None:
        try:
            while self._receive():
                self._step()
        except BaseException as error:
            log.exception("the engine's loop failed")
            self._death = error
        finally:  # nothing here may depend on the scheduler or the runner: they may be what failed
            with self._wake:
                self._closing = True
            while self._inbox:
                self._inbox.popleft()[1](self.dead())
            for task in list(self._tasks.values()):
                task.handle._fail(self.dead())

    def _receive(self) -> bool:
        """Handle all messages; wait for one where there is nothing to run. False once closing."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._tasks or self._closing)
            if self._closing:
                return False
        while self._inbox:
            work, abandon = self._inbox.popleft()
            try:
                work()
            except BaseException as error:
                self._death = error
                abandon(self.dead())
                raise
        return True

    def _step(self) -> None:
        plan = self._scheduler.plan()
        if plan is None:
            return
        for chunk in plan.prefill:
            self._tasks[chunk.sequence].admit()
        try:
            tokens = self._runner.run(plan)
        except torch.AcceleratorError:  # the device is lost: no later step can succeed
            raise
        except Exception as error:
            log.error("a step failed", exc_info=error)
            self._run_singly(plan)
        else:
            self._commit(plan, tokens)

    def _run_singly(self, plan: StepPlan) -> None:
        """Do a step over, a sequence at a time; those that fail alone end."""
        for part in plan.singly():
            try:
                tokens = self._runner.run(part)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                reason = RequestFailedError(f"the step failed with {type(error).__name__}")
                self._end(self._tasks[part.chunks[0].sequence], reason)
            else:
                self._commit(part, tokens)

    def _commit(self, plan: StepPlan, tokens: list[SampledToken]) -> None:
        for sequence, token in self._scheduler.commit(plan, tokens):
            task = self._tasks[sequence]
            try:
                if task.commit(token):
                    del self._tasks[sequence]
                    self._scheduler.finish(sequence)
            except Exception as error:
                log.exception("committing a token failed")
                self._end(task, RequestFailedError(f"the answer could not be decoded: {type(error).__name__}"))

    def _admit(self, task: Task) -> None:
        if task.handle.done:
            return
        sequence = task.sequence
        sequence.pictures = [self._pictures.shared(picture, sequence.namespace) for picture in sequence.pictures]
        self._tasks[sequence] = task
        self._scheduler.add(sequence)

    def _end(self, task: Task, error: MdinferError) -> None:
        task.handle._fail(error)
        if task.sequence in self._tasks:
            del self._tasks[task.sequence]
            if isinstance(error, RequestFailedError):  # its pictures may be what is wrong
                self._pictures.forget(task.sequence.pictures)
            self._scheduler.remove(task.sequence)
