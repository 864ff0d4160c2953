"""Every error the library raises on purpose.

    MdinferError
    ├── ConfigError (ValueError)        an engine option or a config.json that cannot work
    ├── CheckpointError                 weights that are missing, extra, misshapen, damaged
    ├── TokenizerError                  a tokenizer file that does not fit the model
    ├── RequestError (ValueError)       the request cannot be served as it was asked; `param` names the field
    │   ├── ImageError                  an image that cannot be read
    │   └── PromptTooLongError          the prompt leaves no room in the context
    ├── QueueFullError                  too many requests wait; try again later
    ├── RequestFailedError              a fault of ours that ended this one request
    │   └── OutOfMemoryError            there was not memory enough for it; a smaller one may do
    ├── RequestCancelledError           the request was cancelled before it finished
    ├── DeadlineError                   the request did not finish within its `timeout`
    └── EngineDeadError                 the engine is closed or its loop has failed

Messages state the value, the limit and the remedy; they hold no paths of images and no addresses.
"""

from __future__ import annotations

from functools import partial


class MdinferError(Exception):
    """Root of the tree above."""


class ConfigError(MdinferError, ValueError):
    pass


class CheckpointError(MdinferError):
    pass


class TokenizerError(MdinferError):
    pass


class RequestError(MdinferError, ValueError):
    """`param` is the name of the offending field, or None where no single field is to blame."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ImageError(RequestError):
    def __init__(self, message: str, *, param: str | None = "image") -> None:
        super().__init__(message, param=param)


class PromptTooLongError(RequestError):
    """`tokens` is the prompt's length, or a lower bound of it where `counted` is False."""

    def __init__(self, tokens: int, limit: int, *, counted: bool = True, param: str | None = None) -> None:
        super().__init__(
            f"the prompt is {'' if counted else 'at least '}{tokens} tokens long, the context holds {limit} and an "
            "answer needs at least one: shorten the text, send fewer images, or load the engine with a larger "
            "max_context",
            param=param,
        )
        self.tokens, self.limit, self.counted = tokens, limit, counted

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), counted=self.counted, param=self.param), (self.tokens, self.limit)


class QueueFullError(MdinferError):
    pass


class RequestFailedError(MdinferError):
    pass


class OutOfMemoryError(RequestFailedError):
    pass


class RequestCancelledError(MdinferError):
    pass


class DeadlineError(MdinferError):
    pass


class EngineDeadError(MdinferError):
    pass
