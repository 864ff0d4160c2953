"""mdinfer: Moondream 3 on your own hardware.

import mdinfer
engine = mdinfer.Engine.load("demo")
print(engine.query("photo.jpg", "What is this?").text)

`Engine` is loaded when it is first used, so that `import mdinfer` alone does not wait for torch.
"""

from typing import TYPE_CHECKING

from mdinfer.config import ModelConfig
from mdinfer.encoded_image import EncodedImage
from mdinfer.errors import (
    CheckpointError,
    ConfigError,
    DeadlineError,
    EngineDeadError,
    ImageError,
    MdinferError,
    OutOfMemoryError,
    PromptTooLongError,
    QueueFullError,
    RequestCancelledError,
    RequestError,
    RequestFailedError,
    TokenizerError,
)
from mdinfer.handle import RequestHandle
from mdinfer.options import EngineConfig
from mdinfer.request import Caption, Chat, Detect, Point, Query, Sampling
from mdinfer.result import (
    XY,
    Box,
    EngineStats,
    Event,
    Grounding,
    Metrics,
    Result,
    TokenLogprob,
    TopLogprob,
    Usage,
)

if TYPE_CHECKING:
    from mdinfer.engine import Engine

__version__ = "0.1.0"

__all__ = [
    "XY",
    "Box",
    "Caption",
    "Chat",
    "CheckpointError",
    "ConfigError",
    "DeadlineError",
    "Detect",
    "EncodedImage",
    "Engine",
    "EngineConfig",
    "EngineDeadError",
    "EngineStats",
    "Event",
    "Grounding",
    "ImageError",
    "MdinferError",
    "Metrics",
    "ModelConfig",
    "OutOfMemoryError",
    "Point",
    "PromptTooLongError",
    "Query",
    "QueueFullError",
    "RequestCancelledError",
    "RequestError",
    "RequestFailedError",
    "RequestHandle",
    "Result",
    "Sampling",
    "TokenLogprob",
    "TokenizerError",
    "TopLogprob",
    "Usage",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mdinfer.engine import Engine

    globals()["Engine"] = Engine
    return Engine


def __dir__() -> list[str]:
    return sorted(__all__)
