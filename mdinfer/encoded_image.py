"""A picture that has been through the vision tower, for use in any number of requests."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from mdinfer.errors import ImageError

if TYPE_CHECKING:
    import torch


@dataclass(slots=True, eq=False)
class EncodedImage:
    """Made by `Engine.encode_image`; valid for the engine that made it until `close` (or the end of a `with`).

    width and height are the picture's in pixels, after EXIF rotation where that is on.
    """

    width: int
    height: int
    digest: bytes
    _features: torch.Tensor | None
    _owner: object  # what only one engine has

    def features(self) -> torch.Tensor:
        """(positions, text dim) on the engine's device. Raises ImageError once closed."""
        if self._features is None:
            raise ImageError("this encoded image is closed: encode the picture again")
        return self._features

    def close(self) -> None:
        self._features = None

    def __enter__(self) -> EncodedImage:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
