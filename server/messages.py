"""What a client may put into chat messages, before the engine reads them.

The engine takes more than a stranger may send: its image parts may name files. Here text and image_url parts
pass, nothing else; roles, order, the URLs and the images are the engine's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mdinfer.data_url import DataUrl
from mdinfer.request import check_text
from mdinfer.server.errors import bad_request

MAX_MESSAGES = 4096
MAX_PARTS = 4096


def check_count(messages: object) -> None:
    """Raises ApiError 400 for more than any model can read, before something is built of each. Ignores types."""
    if not isinstance(messages, list):
        return
    if len(messages) > MAX_MESSAGES:
        raise bad_request(f"messages has {len(messages)} entries, at most {MAX_MESSAGES} are allowed", "messages")
    contents = (message.get("content") for message in messages if isinstance(message, dict))
    parts = sum(len(content) for content in contents if isinstance(content, list))
    if parts > MAX_PARTS:
        raise bad_request(f"messages hold {parts} content parts, at most {MAX_PARTS} are allowed", "messages")


def check_messages(messages: Sequence[Mapping[str, Any]], max_images: int) -> None:
    """Raises ApiError 400 that names the part at fault, such as messages.0.content.1.image_url."""
    images = 0
    for i, message in enumerate(messages):
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise bad_request("content must be a string or a list of parts", f"messages.{i}.content")
        for j, part in enumerate(content):
            images += _check_part(part, f"messages.{i}.content.{j}")
            if images > max_images:
                message_text = f"the request carries more than {max_images} images: send fewer"
                raise bad_request(message_text, f"messages.{i}.content.{j}.image_url")


def _check_part(part: object, where: str) -> int:
    """The number of images in a content part: 0 or 1."""
    if not isinstance(part, dict):
        raise bad_request(f"{where} must be an object with a type", where)
    kind = part.get("type")
    if kind == "text":
        check_text(f"{where}.text", part.get("text"))
        return 0
    if kind == "image_url":
        image = part.get("image_url")
        if not isinstance(image.get("url") if isinstance(image, dict) else image, str | DataUrl):
            message = f'{where}.image_url must be {{"url": "data:image/jpeg;base64,..."}}'
            raise bad_request(message, f"{where}.image_url")
        return 1
    found = repr(kind[:40]) if isinstance(kind, str) else "none"
    raise bad_request(f'{where}.type must be "text" or "image_url", found {found}', f"{where}.type")
