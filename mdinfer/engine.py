"""The engine: load a checkpoint once, then ask it anything, from any thread or coroutine, many things at a time.

Owns loading, submission, many requests at once, and the threads that read pictures. The work itself is done by
`loop.py`; the calls for one request are `skill_calls.py`.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sized
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mdinfer.data_url import DataUrl, decode_data_url
from mdinfer.encoded_image import EncodedImage
from mdinfer.errors import (
    ConfigError,
    ImageError,
    MdinferError,
    PromptTooLongError,
    QueueFullError,
    RequestFailedError,
)
from mdinfer.handle import RequestHandle
from mdinfer.image import Crops, OpenedPicture, open_picture, read_file
from mdinfer.large_bytes import Bytes, LargeBytes
from mdinfer.loading import Loaded, describe_precision, load_model
from mdinfer.loop import EngineLoop
from mdinfer.memory import cache_pages, explained_shortage, format_bytes
from mdinfer.model.batch import KVCache
from mdinfer.options import EngineConfig
from mdinfer.pages import PagePool
from mdinfer.pictures import LoadedPicture, PictureStore, file_digest
from mdinfer.prefill_step import StepBudget
from mdinfer.prefix_cache import PrefixCache
from mdinfer.reader_pool import ReaderPool
from mdinfer.request import ImageInput, Request, check_integer, check_number, check_text
from mdinfer.result import EngineStats, Result
from mdinfer.runner import Runner
from mdinfer.scheduler import Scheduler
from mdinfer.sequence import Sequence as RunningSequence
from mdinfer.skill_calls import SkillCalls
from mdinfer.skills import Context, compile_request
from mdinfer.skills.compiled import Picture
from mdinfer.task import Task
from mdinfer.uncut import UncutPicture, UncutRoom
from mdinfer.warm_up import warm_up_requests
from mdinfer.workspace import workspace_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

DEFAULT_MODEL = "demo"
_SHARED_FROM = 64 << 20  # bytes of weights: below, threads wait for each other longer than their shares of a step take
_ROOM_SECONDS = 0.01  # between two looks for room in the queue


class Engine(SkillCalls):
    """Make one with `Engine.load`; close it, or use it in a `with`, to stop its threads.

    All calls may be made at the same time from any thread. They raise RequestError where the request is at fault,
    QueueFullError where too many wait, RequestFailedError where the engine failed one request, and EngineDeadError
    after `close` or a fault of the loop.
    """

    def __init__(self, loaded: Loaded, options: EngineConfig) -> None:
        """For `load`, and for callers that make their own model."""
        model, text = loaded.model, loaded.model.config.text
        kv_dtype = {"auto": model.dtype, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[options.kv_dtype]
        on_gpu = model.device.type == "cuda"
        graphs = on_gpu if options.cuda_graphs == "auto" else options.cuda_graphs
        remedy = "choose smaller prefill_tokens=, vision_crops= or image_cache="
        with explained_shortage("the workspace", model.device, remedy):
            self._workspace = workspace_bytes(
                model, options, max_context=loaded.max_context, kv_dtype=kv_dtype, graphs=graphs
            )
        pages = cache_pages(
            text,
            options,
            max_context=loaded.max_context,
            dtype=kv_dtype,
            device=model.device,
            workspace=self._workspace,
        )
        self.model_id, self.options, self.config = loaded.name, options, model.config
        self.max_context = min(loaded.max_context, pages * options.page_size)
        self._loaded = loaded
        self._identity = object()
        with explained_shortage("the KV cache", model.device, "give kv_memory= a smaller size"):
            self._cache = KVCache.allocate(
                text,
                pages=pages,
                page_size=options.page_size,
                dtype=kv_dtype,
                device=model.device,
            )
        self._context = Context(config=model.config, tokenizer=loaded.tokenizer, max_context=self.max_context)
        threads = options.image_threads or min(16, os.cpu_count() or 1)
        # As many as may be admitted at once, and those that are read meanwhile.
        self._readers: ReaderPool[Task] = ReaderPool(threads, options.max_batch_size + threads)
        self._threads = options.cpu_threads or (torch.get_num_threads() if loaded.weight_bytes >= _SHARED_FROM else 1)
        runner = Runner(
            model,
            self._cache,
            max_batch_size=options.max_batch_size,
            vision_crops=options.vision_crops,
            graphs=graphs,
            two_streams=options.two_streams,
        )
        self._tasks: dict[RequestHandle, Task] = {}
        self._most_tasks = options.max_queue + options.max_batch_size
        self._room = threading.Condition()
        self._pictures = PictureStore(options.image_cache)
        self._uncut = UncutRoom(model.device) if options.resize == "device" else None
        pool = PagePool(pages, options.page_size)
        scheduler = Scheduler(
            pool,
            PrefixCache(pool) if options.prefix_cache else None,
            runner.follows,
            max_batch_size=options.max_batch_size,
            budget=StepBudget(prefill_tokens=options.prefill_tokens, vision_crops=options.vision_crops),
        )
        overlap = on_gpu if options.overlap == "auto" else options.overlap
        remedy = "give kv_memory= a smaller size, or cuda_graphs=False"
        with explained_shortage("the CUDA graphs", model.device, remedy) if graphs else nullcontext():
            self._loop = EngineLoop(
                scheduler,
                runner,
                self._pictures,
                overlap=overlap,
                dependent_launch=options.dependent_launch,
                progress=options.progress,
                threads=None if on_gpu else self._threads,
                admitted=self._readers.release,
            )
        # A dropped engine, or the interpreter's end, closes it too; bound to the loop, which does not know the engine.
        self._finalizer = weakref.finalize(self, self._loop.close)

    @classmethod
    def load(cls, model: str | Path = DEFAULT_MODEL, *, tokenizer: str | Path | None = None, **options: Any) -> Engine:
        """Load "demo", a directory, a checkpoint file or a Hugging Face repository id.

        `options` are the fields of EngineConfig; `tokenizer` is a tokenizer.json to use in place of the
        checkpoint's. Raises ConfigError, CheckpointError or TokenizerError.
        """
        known = [field.name for field in fields(EngineConfig)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"options are {', '.join(known)}"
                raise ConfigError(f"unknown option {name!r}: {hint}")
        for name in ("device", "dtype"):
            if isinstance(options.get(name), torch.device | torch.dtype):
                options[name] = str(options[name]).removeprefix("torch.")
        config = EngineConfig(**options)
        path = None if tokenizer is None else Path(tokenizer)
        return cls(load_model(model, config, tokenizer=path), config)

    def generate(self, requests: Iterable[Request], *, progress: bool = False) -> list[Result]:
        """Run many requests together; results are in order. The first error cancels the rest and is raised."""
        pending: deque[RequestHandle] = deque()
        results: list[Result] = []
        try:
            with _bar(requests, progress) as bar:
                for request in requests:
                    pending.append(self._submit_when_room(request))
                    while pending and pending[0].done:
                        _collect(pending, results, bar)
                while pending:
                    pending[0].result()
                    _collect(pending, results, bar)
        finally:
            for handle in pending:
                handle.cancel()
        return results

    async def agenerate(self, requests: Iterable[Request], *, progress: bool = False) -> list[Result]:
        """As `generate`; a cancelled wait cancels the requests."""
        pending: deque[RequestHandle] = deque()
        results: list[Result] = []
        try:
            with _bar(requests, progress) as bar:
                for request in requests:
                    while (handle := self._submitted(request)) is None:
                        await asyncio.sleep(_ROOM_SECONDS)
                    pending.append(handle)
                    while pending and pending[0].done:
                        _collect(pending, results, bar)
                while pending:
                    await pending[0].aresult()
                    _collect(pending, results, bar)
        finally:
            for handle in pending:
                handle.cancel()
        return results

    def encode_image(self, image: ImageInput) -> EncodedImage:
        """Run the vision tower once, for use as the image of any number of requests. Raises ImageError."""
        self._check_alive()
        if isinstance(image, EncodedImage):  # a handle of its own, so that closing one leaves the other
            return replace(image, _features=self._encoded_features(image, "image"))
        crops = self._prepare(Picture(source=image)).crops
        assert crops is not None
        features = self._loop.encode(crops).result()
        return EncodedImage(
            width=crops.width, height=crops.height, digest=crops.digest, _features=features, _owner=self._identity
        )

    async def aencode_image(self, image: ImageInput) -> EncodedImage:
        return await asyncio.to_thread(self.encode_image, image)

    # The engine itself

    def submit(
        self, request: Request, *, namespace: str = "", priority: int = 0, timeout: float | None = None
    ) -> RequestHandle:
        """Start a request and return at once.

        Requests of different namespaces share nothing in the caches, so that none can tell from its own time what
        another one asked. A smaller priority goes first. After `timeout` seconds an unfinished request ends with
        DeadlineError. Raises RequestError, QueueFullError or EngineDeadError; what can only be known later (a
        picture that cannot be read, say) is raised by the handle.
        """
        self._check_alive()
        self._check_room()  # before the work; and again after it
        check_text("namespace", namespace)
        check_integer("priority", priority, -(1 << 31), 1 << 31)
        if timeout is not None:
            check_number("timeout", timeout, 0, 1e9)
        compiled = compile_request(request, self._context)
        limit = self.max_context
        if len(compiled.prompt) >= limit:
            raise PromptTooLongError(len(compiled.prompt), limit)
        compiled = replace(compiled, pictures=tuple(map(self._snapshot, compiled.pictures)))
        handle = RequestHandle(self._cancel, self._forget)
        # One more than max_tokens for the token that closes a reasoning trace.
        most = min(limit, len(compiled.prompt) + compiled.max_tokens + 1)
        task = Task(
            handle=handle,
            compiled=compiled,
            sequence=RunningSequence(
                prompt=compiled.prompt,
                state=compiled.state,
                sampling=compiled.sampling,
                max_positions=most,
                namespace=namespace,
                priority=int(priority),
            ),
            eos_id=self.config.tokenizer.eos_id,
        )
        with self._room:
            self._check_room()
            self._tasks[handle] = task
        if timeout is not None:
            task.due = task.submitted + timeout
            self._loop.watch(task)
        if compiled.pictures:
            self._readers.submit(task, task.sequence.rank, self._read_pictures, self._refuse)
        else:
            self._start(task)
        return handle

    def warm_up(self) -> None:
        """Answer short requests, so that the first real one does not pay for one-time set-up.

        On a GPU of every kind, for kernels are compiled when they are first used; on a CPU, which takes its time for
        a picture and has nothing to compile, of text.
        """
        for request in warm_up_requests(pictures=self._loaded.model.device.type == "cuda"):
            with suppress(PromptTooLongError):  # where max_context leaves no room for a picture
                self.submit(request).result()

    @property
    def healthy(self) -> bool:
        """True while the loop runs; False once closed or failed, or while one step lasts for minutes."""
        return self._loop.healthy

    @property
    def full(self) -> bool:
        """True while a request more would raise QueueFullError."""
        return len(self._tasks) >= self._most_tasks

    def stats(self) -> EngineStats:
        """What runs and waits now, and what was done since the engine was loaded."""
        return self._loop.stats(len(self._tasks))

    def description(self) -> str:
        """A few lines for people: device, precision, memory, how much runs at once."""
        model, options = self._loaded.model, self.options
        cache = self._cache.nbytes
        positions = self._cache.k.shape[1] * options.page_size
        together = min(options.max_batch_size, positions // min(800, self.max_context))
        count = "1 thread" if self._threads == 1 else f"{self._threads} threads"
        threads = f" ({count})" if model.device.type == "cpu" else ""
        workspace = f", workspace {format_bytes(self._workspace)}" if self._workspace else ""
        lines = [
            f"model     {self.model_id}" + (f" ({self._loaded.notice})" if self._loaded.notice else ""),
            f"device    {model.device}{threads}, {describe_precision(model)}"
            + (f" ({self._loaded.choice.why})" if self._loaded.choice.why else ""),
            f"memory    weights {format_bytes(self._loaded.weight_bytes)}, KV cache up to {format_bytes(cache)}"
            + workspace,
            f"capacity  {together} requests of 800 tokens at once, context {self.max_context} tokens",
        ]
        return "\n".join(lines)

    def close(self) -> None:
        """End all work and threads; unfinished requests raise EngineDeadError. Closing twice is fine."""
        self._finalizer()
        self._readers.close()
        for handle in list(self._tasks):
            handle._fail(self._loop.dead())

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_alive(self) -> None:
        if not self._loop.alive:
            raise self._loop.dead()

    def _check_room(self) -> None:
        if self.full:
            raise QueueFullError(
                f"{len(self._tasks)} requests wait or run, the limit is {self._most_tasks}: try again later, "
                "or load the engine with a larger max_queue"
            )

    def _submit_when_room(self, request: Request) -> RequestHandle:
        while (handle := self._submitted(request)) is None:
            with self._room:
                self._room.wait(timeout=_ROOM_SECONDS)
        return handle

    def _submitted(self, request: Request) -> RequestHandle | None:
        """None where there is no room."""
        try:
            return self.submit(request)
        except QueueFullError:
            return None

    def _snapshot(self, picture: Picture) -> Picture:
        """What the caller may change, or close, before it is read: an array, a buffer, an encoded picture."""
        source = picture.source
        if isinstance(source, np.ndarray):
            return replace(picture, source=source.copy())
        if isinstance(source, bytearray | memoryview):
            return replace(picture, source=bytes(source))
        if isinstance(source, EncodedImage):
            return replace(picture, source=replace(source, _features=self._encoded_features(source, picture.param)))
        return picture

    def _refuse(self, task: Task) -> None:
        task.fail(self._loop.dead())

    def _read_pictures(self, task: Task) -> None:
        try:
            for picture in task.compiled.pictures:
                if task.handle.done:  # cancelled meanwhile
                    return
                self._check_alive()  # else each that waits would be read before it hears of the end
                task.sequence.pictures.append(self._prepare(picture, task.sequence.namespace))
        except MdinferError as error:
            task.fail(error)
        except BaseException as error:  # what a caller's own object raises, too
            task.fail(RequestFailedError(f"reading an image failed with {type(error).__name__}"))
        else:
            task.compiled = replace(task.compiled, pictures=())  # the sources may be large
            self._start(task)

    def _start(self, task: Task) -> None:
        task.prepared()
        self._loop.add(task)

    def _prepare(self, picture: Picture, namespace: str | None = None) -> LoadedPicture:
        """Read a picture; with a namespace, one that is known there need not be cut and seen again, nor decoded if it
        comes in a file that is known.
        """
        source: ImageInput | DataUrl | Bytes = picture.source
        if isinstance(source, EncodedImage):
            return LoadedPicture(digest=source.digest, features=self._encoded_features(source, picture.param))
        if isinstance(source, str | os.PathLike) and not picture.data_url:
            source = read_file(source, picture.param)
        file = None
        if namespace is not None and isinstance(source, str | DataUrl | bytes | LargeBytes):
            file = file_digest(source)
            if (seen := self._pictures.in_file(file, namespace)) is not None:
                return seen
        if picture.data_url or isinstance(source, DataUrl):
            source = decode_data_url(source if isinstance(source, DataUrl) else str(source), param=picture.param)
        opened = open_picture(
            source,
            self.config.vision,
            exif=self.options.exif,
            max_pixels=self.options.max_image_pixels,
            param=picture.param,
        )
        known = self._pictures.known(opened.digest, namespace) if namespace is not None else None
        if file is not None and namespace is not None:
            self._pictures.found(file, opened.digest, namespace)
        return known or LoadedPicture(digest=opened.digest, crops=self._cut(opened))

    def _cut(self, opened: OpenedPicture) -> Crops | UncutPicture:
        """Or leave that to the device."""
        uncut = None if self._uncut is None else self._uncut.take(opened)
        return uncut or opened.crops()

    def _encoded_features(self, image: EncodedImage, param: str) -> torch.Tensor:
        try:
            features = image.features()
        except ImageError as error:
            raise ImageError(str(error), param=param) from None
        if image._owner is not self._identity:
            raise ImageError(
                "this encoded image was made by another engine: encode the picture with this one", param=param
            )
        return features

    def _cancel(self, handle: RequestHandle) -> None:
        task = self._tasks.get(handle)
        if task is not None:
            self._loop.cancel(task)

    def _forget(self, handle: RequestHandle) -> None:
        with self._room:
            task = self._tasks.pop(handle, None)
            self._room.notify()
        if task is not None:
            self._loop.forget(task)
            self._readers.release(task)


def _bar(requests: Iterable[Request], progress: bool) -> tqdm[Any]:
    from tqdm import tqdm

    return tqdm(total=len(requests) if isinstance(requests, Sized) else None, disable=not progress, unit="request")


def _collect(pending: deque[RequestHandle], results: list[Result], bar: tqdm[Any]) -> None:
    """Move the first pending request, which is done, to the results. Raises what ended it."""
    results.append(pending[0].result())
    pending.popleft()
    bar.update()
