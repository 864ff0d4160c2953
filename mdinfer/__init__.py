"""mdinfer: Moondream 3 on your own hardware.

import mdinfer
engine = mdinfer.Engine.load("demo")
print(engine.query("photo.jpg", "What is this?").text)
"""

from mdinfer.config import ModelConfig
from mdinfer.encoded_image import EncodedImage
from mdinfer.engine import Engine
from mdinfer.errors import (
    CheckpointError,
    ConfigError,
    EngineDeadError,
    ImageError,
    MdinferError,
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
    Event,
    Grounding,
    Metrics,
    Result,
    TokenLogprob,
    TopLogprob,
    Usage,
)

__version__ = "0.1.0"

__all__ = [
    "XY",
    "Box",
    "Caption",
    "Chat",
    "CheckpointError",
    "ConfigError",
    "Detect",
    "EncodedImage",
    "Engine",
    "EngineConfig",
    "EngineDeadError",
    "Event",
    "Grounding",
    "ImageError",
    "MdinferError",
    "Metrics",
    "ModelConfig",
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
