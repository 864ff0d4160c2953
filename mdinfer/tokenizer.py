"""Text to token ids and back, with a byte-level BPE `tokenizer.json`.

Owns the file's fit to the model and the incremental decoder. Encodes plain text only: no text ever becomes a
special token, for the encoder does not know them; control tokens are put into prompts by id (`prompts.py`).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from mdinfer.config import TokenConfig
from mdinfer.errors import TokenizerError
from mdinfer.request import check_text

HUB_REPOSITORY = "moondream/starmie-v1"
_FILE_NAME = "tokenizer.json"
_FRAME_IDS = (1, 2)  # open and close the name of the skill in a prompt


def byte_alphabet() -> str:
    """GPT-2's characters for the bytes 0..255: printable Latin-1 is itself, the others are U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


_BYTES = {char: byte for byte, char in enumerate(byte_alphabet())}


class IncrementalDecoder:
    """Turns ids into text one by one; what `push` and a final `flush` return joins to `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes: often "" within a character of several bytes."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left when no more tokens come: U+FFFD for an unfinished character, else "". Starts anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class Tokenizer:
    """Made by `from_file` or `find_tokenizer`; immutable and thread-safe."""

    def __init__(self, encoder: tokenizers.Tokenizer, token_bytes: tuple[bytes, ...]) -> None:
        self._encoder = encoder
        self._token_bytes = token_bytes
        self.longest_token = max(map(len, token_bytes))

    @classmethod
    def from_file(cls, path: str | Path, tokens: TokenConfig, vocab_size: int) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises TokenizerError if the file cannot be read, is not byte-level BPE, has an id of `vocab_size` or
        more, or has ordinary text where the model has control tokens.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"), tokens, vocab_size)
        except (OSError, UnicodeError) as error:
            raise TokenizerError(f"{path} cannot be read: {error}") from error
        except TokenizerError as error:
            raise TokenizerError(f"{path} does not fit the model: {error}") from error

    @classmethod
    def from_json(cls, text: str, tokens: TokenConfig, vocab_size: int) -> Tokenizer:
        """The same from the text of the file. Raises TokenizerError."""
        try:
            raw = json.loads(text)
            _check_kind(raw)
            full = tokenizers.Tokenizer.from_str(text)
            added = full.get_added_tokens_decoder()
            vocab = full.get_vocab(with_added_tokens=True)
            control = _control_ids(tokens)
            _check_fit(vocab, set(added), control, vocab_size)
            special = control | {i for i, token in added.items() if token.special}
            encoder = _plain_encoder(raw, vocab, special)
        except TokenizerError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"it is no usable tokenizer.json: {error}") from error
        table = [b""] * (max(vocab.values()) + 1)
        for token, token_id in vocab.items():
            if token_id not in special:
                table[token_id] = _to_bytes(token)
        return cls(encoder, tuple(table))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, no BOS. Raises RequestError (param "text") on a lone surrogate."""
        check_text("text", text)
        return self._encoder.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, not always whole characters; b"" for special ids and unknown ones."""
        return self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids without the special ones; U+FFFD for bytes that are no UTF-8."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def decoder(self) -> IncrementalDecoder:
        return IncrementalDecoder(self)


def find_tokenizer(
    explicit: Path | None,
    directory: Path | None,
    tokens: TokenConfig,
    vocab_size: int,
    *,
    progress: bool = True,
) -> Tokenizer:
    """The explicit file if one is given; else the directory's if it fits; else the hub's starmie-v1.

    A stale tokenizer of another family can lie beside a checkpoint, hence "fits". Raises TokenizerError.
    """
    if explicit is not None:
        return Tokenizer.from_file(explicit, tokens, vocab_size)
    passed_over = ""
    if directory is not None and (path := directory / _FILE_NAME).is_file():
        try:
            return Tokenizer.from_file(path, tokens, vocab_size)
        except TokenizerError as error:
            passed_over = f" ({error})"
    try:
        path = _download(progress)
    except Exception as error:  # no network, no such repository, no disk, no library: one remedy
        raise TokenizerError(
            f"no tokenizer found{passed_over}, and {HUB_REPOSITORY} cannot be fetched from the Hugging Face "
            f"hub ({type(error).__name__}): pass the path of its {_FILE_NAME}, or put it beside the checkpoint"
        ) from error
    return Tokenizer.from_file(path, tokens, vocab_size)


def _download(progress: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    silence = not progress and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        return Path(hf_hub_download(HUB_REPOSITORY, _FILE_NAME))
    finally:
        if silence:
            enable_progress_bars()


def _check_kind(raw: Any) -> None:
    """Raise TokenizerError unless this is byte-level BPE that can spell every byte."""
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise TokenizerError("it is no BPE tokenizer")
    if not (_has_byte_level(raw.get("pre_tokenizer")) and _has_byte_level(raw.get("decoder"))):
        raise TokenizerError("it is not byte-level, as its pre-tokenizer and decoder must be")
    if missing := _BYTES.keys() - model.get("vocab", {}).keys():
        raise TokenizerError(f"it has no token for {len(missing)} of the 256 bytes")


def _has_byte_level(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    inner = [*part.get("pretokenizers", ()), *part.get("decoders", ())]
    return part.get("type") == "ByteLevel" or any(map(_has_byte_level, inner))


def _control_ids(tokens: TokenConfig) -> set[int]:
    """Ids that steer the model: never made from text, never part of it, whatever the file calls them."""
    return {
        *_FRAME_IDS,
        *(
            tokens.bos_id,
            tokens.eos_id,
            tokens.answer_id,
            tokens.thinking_id,
            tokens.coord_id,
            tokens.size_id,
        ),
        *(tokens.start_ground_points_id, tokens.end_ground_id),
    }


def _check_fit(vocab: dict[str, int], added: set[int], control: set[int], vocab_size: int) -> None:
    largest = max(vocab.values())
    if largest >= vocab_size:
        raise TokenizerError(f"its largest id is {largest}, the model's vocabulary has {vocab_size}")
    if plain := sorted(control - added):
        names = {token_id: text for text, token_id in vocab.items()}
        found = ", ".join(f"{i} ({names[i]!r})" if i in names else f"{i} (no token)" for i in plain)
        raise TokenizerError(f"ids {found} must be added tokens, not text, for they control the model")


def _plain_encoder(raw: dict[str, Any], vocab: dict[str, int], special: set[int]) -> tokenizers.Tokenizer:
    """The same BPE without special tokens, so that no text matches one, nor anything random, cut or padded.

    Added tokens that are text (runs of spaces, say) stay. All ids keep their place: a special one is renamed to
    what no text spells, since byte-level BPE knows no private-use character. The library's own
    `encode_special_tokens` would still make one of a whole word that is in the vocabulary.
    """
    model = raw["model"]
    vocab = {f"\ue000{i}" if i in special else text: i for text, i in vocab.items()}
    bare = {
        **raw,
        "added_tokens": [token for token in raw.get("added_tokens") or () if token["id"] not in special],
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "model": {**model, "vocab": vocab, "dropout": None, "unk_token": None},
    }
    return tokenizers.Tokenizer.from_str(json.dumps(bare))


def _to_bytes(text: str) -> bytes:
    """As the library's byte-level decoder has it: the text's UTF-8 if a character is outside the alphabet."""
    values = [_BYTES.get(char) for char in text]
    return text.encode() if None in values else bytes(value for value in values if value is not None)
