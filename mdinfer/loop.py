"""The engine's loop: one thread that plans a step, launches it, reads the one before and commits its tokens.

Everything the scheduler and the runner hold is touched by this thread alone; others leave messages in its inbox.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

import torch

from mdinfer.cpu_threads import set_own_threads
from mdinfer.errors import (
    DeadlineError,
    EngineDeadError,
    MdinferError,
    OutOfMemoryError,
    RequestCancelledError,
    RequestFailedError,
)
from mdinfer.flight import Flight, Landing
from mdinfer.image import Crops
from mdinfer.kernels.dispatch import launch_dependently
from mdinfer.pictures import PictureStore
from mdinfer.result import EngineStats
from mdinfer.runner import Runner
from mdinfer.scheduler import Scheduler
from mdinfer.sequence import Sequence
from mdinfer.step_plan import StepPlan
from mdinfer.task import News, Task
from mdinfer.teller import Teller
from mdinfer.uncut import UncutPicture

T = TypeVar("T")

STALL_SECONDS = 300.0  # the first step on a GPU compiles kernels, a long prefill on a CPU takes minutes

log = logging.getLogger(__name__)


_Box: TypeAlias = deque[tuple[Callable[[], None], Callable[[EngineDeadError], None]]]


class EngineLoop:
    """`overlap`: a step is launched before the one before it is read, so that the device never waits for the host.
    `dependent_launch`: its kernels start while those before them end. `admitted` hears of each task when it first
    runs. `threads` of a CPU share each operation; None leaves that to torch.

    Made once the runner's graphs are recorded, on the thread that will replay them. Raises what that raises.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        pictures: PictureStore,
        *,
        overlap: bool,
        dependent_launch: bool = False,
        progress: bool = False,
        threads: int | None = None,
        admitted: Callable[[Task], None] = lambda task: None,
    ) -> None:
        self._scheduler, self._runner, self._pictures, self._overlap = scheduler, runner, pictures, overlap
        self._admitted = admitted
        self._tasks: dict[Sequence, Task] = {}
        self._flights: deque[tuple[StepPlan, Flight]] = deque()
        self._inbox: _Box = deque()
        self._encodes: _Box = deque()
        self._timed: set[Task] = set()
        self._next_due = math.inf  # no task of `_timed` is due earlier
        self._wake = threading.Condition()
        self._closing = False
        self._death: BaseException | None = None
        self._turned = math.inf  # when the step at hand began; never, while there is none
        self._steps = self._encoded = self._prompt_tokens = self._generated = 0
        self._teller = Teller(self._stop, lambda task, error: self._send(lambda: self._end(task, error), task.fail))
        recorded: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._main,
            args=(recorded, progress, threads, dependent_launch),
            name="mdinfer-engine",
            daemon=True,
        )
        self._thread.start()
        recorded.result()

    @property
    def alive(self) -> bool:
        """It takes messages."""
        return self._thread.is_alive() and self._death is None and not self._closing

    @property
    def healthy(self) -> bool:
        """Alive, and not at the same step for STALL_SECONDS."""
        return self.alive and time.monotonic() - self._turned < STALL_SECONDS

    def add(self, task: Task) -> None:
        """Schedule a task whose pictures are ready."""
        self._send(lambda: self._admit(task), task.fail)

    def cancel(self, task: Task) -> None:
        self._send(lambda: self._end(task, RequestCancelledError("the request was cancelled")), task.fail)

    def watch(self, task: Task) -> None:
        """End a task once it is due, wherever it is, unless it is forgotten before."""

        def watch() -> None:
            if not task.handle.done:
                self._timed.add(task)
                self._next_due = min(self._next_due, task.due)
            if task.handle.done:  # meanwhile
                self.forget(task)

        self._send(watch, task.fail)

    def forget(self, task: Task) -> None:
        """The task has ended. From any thread."""
        self._timed.discard(task)

    def encode(self, picture: Crops | UncutPicture) -> Future[torch.Tensor]:
        """Features of a picture, made between two steps, one picture at a time."""
        done: Future[torch.Tensor] = Future()

        def work() -> None:
            try:
                found = _attempt(lambda: self._runner.encode([picture]))
                if found is None:
                    found = self._runner.encode([picture], sparing=True)
                [features] = found
            except torch.AcceleratorError:
                raise
            except Exception as error:
                log.exception("encoding a picture failed")
                done.set_exception(_failure("encoding the picture", error))
            else:
                self._encoded += 1
                done.set_result(features)

        self._send(work, done.set_exception, self._encodes)
        return done

    def stats(self, submitted: int) -> EngineStats:
        """Counts as they are now, of so many requests; from any thread, so those of a step may be a step apart."""
        scheduler, pages = self._scheduler, self._scheduler.pages
        return EngineStats(
            running=len(scheduler.running),
            waiting=max(0, submitted - len(scheduler.running)),
            pages_total=pages.count,
            pages_free=pages.free,
            pages_cached=pages.idle,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            images_encoded=self._encoded,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generated,
        )

    def close(self) -> None:
        """Stop after the step that runs; unfinished requests end with EngineDeadError. Waits for the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() not in (self._thread, self._teller.thread):  # which it waits for itself
            self._thread.join()

    def dead(self) -> EngineDeadError:
        """Why nothing more can be asked of this loop."""
        if self._death is not None:
            return EngineDeadError(f"the engine's loop failed ({type(self._death).__name__}): load the engine anew")
        return EngineDeadError("the engine is closed")

    def _send(
        self,
        work: Callable[[], None],
        abandon: Callable[[EngineDeadError], None],
        box: _Box | None = None,
    ) -> None:
        """Have the loop's thread do `work`; if it never will, `abandon` hears why."""
        with self._wake:
            alive = not self._closing and self._death is None
            if alive:
                (self._inbox if box is None else box).append((work, abandon))
                self._wake.notify()
        if not alive:
            abandon(self.dead())

    # The loop

    def _main(self, recorded: Future[None], progress: bool, threads: int | None, dependent_launch: bool) -> None:
        try:
            try:
                if threads is not None:
                    set_own_threads(threads)
                if self._runner.device.type == "cuda":
                    torch.cuda.set_device(self._runner.device)  # a thread's own setting, as is the next
                    launch_dependently(dependent_launch)
                self._runner.record_graphs(progress=progress)
            except BaseException as error:
                recorded.set_exception(error)
                raise
            recorded.set_result(None)
            while self._receive():
                self._step()
        except BaseException as error:
            log.exception("the engine's loop failed")
            self._death = error
        finally:  # nothing here may depend on the scheduler or the runner: they may be what failed
            with self._wake:
                self._closing = True
            self._teller.close()
            for box in (self._inbox, self._encodes):
                while box:
                    box.popleft()[1](self.dead())
            for task in [*self._tasks.values(), *self._timed]:
                task.fail(self.dead())

    def _receive(self) -> bool:
        """Handle all messages and what is due; wait for one where there is nothing to run. False once closing."""
        with self._wake:
            self._turned = math.inf
            while not (self._inbox or self._encodes or self._tasks or self._flights or self._closing):
                wait = self._next_due - time.perf_counter()
                if wait <= 0:
                    break
                self._wake.wait(None if wait == math.inf else wait)
            self._turned = time.monotonic()
            if self._closing:
                return False
        for _ in range(len(self._inbox)):
            self._handle(self._inbox)
        if self._encodes:  # one, for the vision tower takes its time
            self._handle(self._encodes)
        if time.perf_counter() >= self._next_due:
            self._expire()
        return True

    def _handle(self, box: _Box) -> None:
        work, abandon = box.popleft()
        try:
            work()
        except BaseException as error:
            self._death = error
            abandon(self.dead())
            raise

    def _step(self) -> None:
        """Plan, launch, commit: with overlap, commit what was launched before."""
        plan = self._scheduler.plan()
        if plan is not None:
            self._launch(plan)
        while len(self._flights) > (self._overlap and plan is not None):
            self._land()

    def _launch(self, plan: StepPlan) -> None:
        for chunk in plan.prefill:
            task = self._tasks[chunk.sequence]
            if not task.admitted:
                task.admit()
                self._admitted(task)
        flight = self._begin(plan)
        if flight is None:  # handled out here: an error in hand holds the tensors of the step that failed
            self._run_singly(plan)
        else:
            self._flights.append((plan, flight))

    def _begin(self, plan: StepPlan) -> Flight | None:
        """None where it failed, but for the loss of the device: no later step can succeed."""
        try:
            return self._runner.launch(plan)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            _report("a step failed", error)
        return None

    def _land(self) -> None:
        plan, flight = self._flights.popleft()
        self._commit(plan, flight.read())

    def _run_singly(self, plan: StepPlan) -> None:
        """Do a step over, a sequence at a time; those that fail alone end."""
        while self._flights:
            self._land()
        for part in plan.singly():
            sequence = part.chunks[0].sequence
            if sequence.ended:
                continue
            try:
                landing = self._run_alone(part)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                _report("a step failed for one request alone", error)
                self._end(self._tasks[sequence], _failure("the step", error))
            else:
                self._commit(part, landing)

    def _run_alone(self, part: StepPlan) -> Landing:
        landing = _attempt(lambda: self._runner.launch(part).read())
        return self._runner.launch(part, sparing=True).read() if landing is None else landing

    def _commit(self, plan: StepPlan, landing: Landing) -> None:
        now, news = time.perf_counter(), list[News]()
        for chunk in plan.prefill if plan.pictures else ():
            task = self._tasks.get(chunk.sequence)
            if task is not None and any(picture in plan.pictures for picture in chunk.sequence.pictures):
                task.vision_s += landing.vision_s
        for sequence, token in self._scheduler.commit(plan, landing.tokens):
            task = self._tasks[sequence]
            if not token.sound:
                self._end(task, RequestFailedError("the model's numbers are not finite"))
                continue
            self._generated += 1
            news.append(task.take(token, now))
            if news[-1].reason is not None:
                self._finish(task)
        self._steps += 1
        self._encoded += len(plan.pictures)
        if news:
            self._teller.tell(news)

    # Tasks

    def _admit(self, task: Task) -> None:
        if task.handle.done:
            return
        sequence = task.sequence
        sequence.pictures = [self._pictures.shared(picture, sequence.namespace) for picture in sequence.pictures]
        self._tasks[sequence] = task
        self._prompt_tokens += len(sequence.prompt)
        self._scheduler.add(sequence)

    def _stop(self, task: Task) -> None:
        """The answer is complete: what was sampled of it since does not count."""

        def stop() -> None:
            if task.sequence in self._tasks:
                self._finish(task)

        self._send(stop, lambda error: None)

    def _finish(self, task: Task) -> None:
        del self._tasks[task.sequence]
        self._scheduler.finish(task.sequence)

    def _end(self, task: Task, error: MdinferError) -> None:
        task.fail(error)
        if task.sequence in self._tasks:
            del self._tasks[task.sequence]
            if isinstance(error, RequestFailedError):  # its pictures may be what is wrong
                self._pictures.forget(task.sequence.pictures, task.sequence.namespace)
            self._scheduler.remove(task.sequence)

    def _expire(self) -> None:
        now, timed = time.perf_counter(), list(self._timed)
        for task in timed:
            if task.due <= now:
                self._timed.discard(task)
                limit = task.due - task.submitted
                self._end(task, DeadlineError(f"the request did not finish within its timeout of {limit:g} s"))
        self._next_due = min((task.due for task in timed if task.due > now), default=math.inf)


def _failure(what: str, error: Exception) -> RequestFailedError:
    if _is_shortage(error):
        return OutOfMemoryError(f"{what} ran out of memory, also alone: send fewer or smaller images, or try again")
    return RequestFailedError(f"{what} failed with {type(error).__name__}")


def _attempt(work: Callable[[], T]) -> T | None:
    """None where memory did not suffice; what the attempt held is free by then, for its error and frames are gone."""
    try:
        return work()
    except Exception as error:
        if not _is_shortage(error):
            raise
    _free_memory()
    return None


def _report(what: str, error: Exception) -> None:
    """As text: a handler that keeps the record must not keep, with the error's frames, the tensors of the step."""
    log.error("%s\n%s", what, "".join(traceback.format_exception(error)))


def _is_shortage(error: Exception) -> bool:
    """Libraries beside torch's allocator have no class for it; a lost device is none, whatever it says."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = isinstance(error, RuntimeError) and not isinstance(error, torch.AcceleratorError)
    return told and any(sign in str(error) for sign in ("out of memory", "ALLOC_FAILED", "can't allocate memory"))


def _free_memory() -> None:
    """Give back what the allocator keeps, so that a smaller piece of it may do."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
