"""Pictures on their way into prompts: crops, or what they are cut from, until the vision tower has seen them, then
features.

One object stands for a picture in all requests of a namespace that show it at the same time, or soon after one
another, so that the tower sees it once. No tensor is touched here.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from mdinfer.data_url import DataUrl
from mdinfer.large_bytes import Bytes

if TYPE_CHECKING:
    import torch

    from mdinfer.image import Crops
    from mdinfer.uncut import UncutPicture


_FILES = 4  # remembered for each picture that is kept


@dataclass(kw_only=True, eq=False)  # no slots: the store refers to it weakly
class LoadedPicture:
    """digest identifies the picture (Crops.digest); `crops` are there until `features` (positions, D) are."""

    digest: bytes
    crops: Crops | UncutPicture | None = None
    features: torch.Tensor | None = None

    @property
    def encoded(self) -> bool:
        return self.features is not None

    @property
    def crop_count(self) -> int:
        """Crops that the tower has to see."""
        return 0 if self.crops is None else self.crops.count

    def encode(self, features: torch.Tensor) -> None:
        """The tower has seen it, or will have before anything else that the device does."""
        self.features, self.crops = features, None


def file_digest(file: str | DataUrl | Bytes) -> bytes:
    """SHA-256 of a picture file, or of the data URL that holds one: what is the same need not be decoded again."""
    if isinstance(file, DataUrl):
        head, rest = file.head, file.rest
    else:
        head, rest = (file, ()) if isinstance(file, str) else ("", (memoryview(file),))
    digest = hashlib.sha256(b"url" if isinstance(file, str | DataUrl) else b"file")
    digest.update(head.encode("utf-8", "surrogatepass"))
    for piece in rest:
        digest.update(piece)
    return digest.digest()


class PictureStore:
    """Pictures by namespace and digest, and which files they came in: the `capacity` used last, and all others for as
    long as a request has them. Its methods may be called from any thread.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._pictures: WeakValueDictionary[tuple[str, bytes], LoadedPicture] = WeakValueDictionary()
        self._last: OrderedDict[tuple[str, bytes], LoadedPicture] = OrderedDict()  # held here
        self._files: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()  # the digests of the pictures in them

    def __len__(self) -> int:
        """How many are held for requests to come."""
        return len(self._last)

    def in_file(self, file: bytes, namespace: str) -> LoadedPicture | None:
        """The picture that was found in a file of this `file_digest`, if it is known."""
        with self._lock:
            digest = self._files.get((namespace, file))
        return None if digest is None else self.known(digest, namespace)

    def found(self, file: bytes, digest: bytes, namespace: str) -> None:
        """Remember which picture a file holds. One picture may come in several files."""
        with self._lock:
            self._files[namespace, file] = digest
            self._files.move_to_end((namespace, file))
            while len(self._files) > _FILES * self.capacity:
                self._files.popitem(last=False)

    def known(self, digest: bytes, namespace: str) -> LoadedPicture | None:
        with self._lock:
            picture = self._pictures.get((namespace, digest))
            if picture is not None:
                self._use((namespace, digest), picture)
            return picture

    def shared(self, picture: LoadedPicture, namespace: str) -> LoadedPicture:
        """The picture itself, or the one that came before it and shows the same."""
        if picture.encoded:  # the caller's own, or known already
            return picture
        with self._lock:
            found = self._pictures.setdefault((namespace, picture.digest), picture)
            self._use((namespace, picture.digest), found)
            return found

    def forget(self, pictures: Iterable[LoadedPicture], namespace: str) -> None:
        """Have them made anew when they come again."""
        with self._lock:
            for picture in pictures:
                key = (namespace, picture.digest)
                if self._pictures.get(key) is picture:
                    del self._pictures[key]
                    self._last.pop(key, None)

    def _use(self, key: tuple[str, bytes], picture: LoadedPicture) -> None:
        self._last[key] = picture
        self._last.move_to_end(key)
        while len(self._last) > self.capacity:
            self._last.popitem(last=False)
