"""Encoding against the golden rows, decoding against the library, and which files fit a model."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mdinfer.config import ModelConfig, TokenConfig
from mdinfer.errors import RequestError, TokenizerError
from mdinfer.tokenizer import HUB_REPOSITORY, Tokenizer, byte_alphabet, find_tokenizer

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "checkpoints" / "tiny-a"
FILE = CHECKPOINT / "tokenizer.json"
RAW: dict[str, Any] = json.loads(FILE.read_text())
ROWS: dict[str, Any] = json.loads((GOLDEN / "golden" / "tiny-a" / "tokenizer.json").read_text())
CONFIG = ModelConfig.from_file(CHECKPOINT / "config.json")
TOKENS, VOCAB = CONFIG.tokenizer, CONFIG.text.vocab_size
SPECIALS = [token["content"] for token in RAW["added_tokens"]]

TOKENIZER = Tokenizer.from_file(FILE, TOKENS, VOCAB)
LIBRARY = tokenizers.Tokenizer.from_file(str(FILE))


def changed(**parts: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(RAW)), **parts}


def added(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": token_id, "content": content, **usual, **flags}


def built(raw: object, vocab_size: int = VOCAB) -> Tokenizer:
    return Tokenizer.from_json(json.dumps(raw), TOKENS, vocab_size)


# Encoding


@pytest.mark.parametrize("row", ROWS["encode"], ids=lambda row: repr(row["text"][:24]))
def test_golden_encode(row: dict[str, Any]) -> None:
    ids = TOKENIZER.encode(row["text"])
    if not any(special in row["text"] for special in SPECIALS):
        assert ids == row["ids"]
    assert min(ids, default=11) >= 11
    assert TOKENIZER.decode(ids) == row["text"]
    assert TOKENIZER.decode(row["ids"]) == row["decoded_skip_special"]


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIALS), st.text(max_size=6), st.sampled_from(["<|", "|>", "md_"]))))
def test_no_text_becomes_a_control_token(parts: list[str]) -> None:
    text = "".join(parts)
    ids = TOKENIZER.encode(text)
    assert min(ids, default=11) >= 11
    assert TOKENIZER.decode(ids) == text


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=50))
def test_encode_equals_the_library_on_text_without_special_tokens(text: str) -> None:
    assert TOKENIZER.encode(text) == LIBRARY.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("strip", [True, False])
def test_only_added_tokens_that_are_text_are_matched(special: bool, strip: bool) -> None:
    token = added(500, "<image>", special=special, lstrip=strip, rstrip=strip)
    raw = changed(added_tokens=[*RAW["added_tokens"], token])
    tokenizer = built(raw)
    text = "a <image> b<image>"
    ids = tokenizer.encode(text)
    assert (500 in ids) == (not special)
    if special:
        assert tokenizer.decode(ids) == text
    else:
        library = tokenizers.Tokenizer.from_str(json.dumps(raw))
        assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.token_bytes(500) == (b"" if special else b"<image>")


def test_control_tokens_are_no_text_even_where_the_file_does_not_mark_them_special() -> None:
    tokenizer = built(changed(added_tokens=[t | {"special": t["id"] < 4} for t in RAW["added_tokens"]]))
    text = "<|md_reserved_4|>"
    ids = tokenizer.encode(text)
    assert 5 not in ids
    assert tokenizer.decode([*ids, 5]) == text


def test_a_whole_word_that_is_a_special_token_is_spelled_out() -> None:
    raw = changed(pre_tokenizer={**RAW["pre_tokenizer"], "use_regex": False})
    raw["model"]["ignore_merges"] = True  # takes a word of the vocabulary whole
    tokenizer = built(raw)
    for special in SPECIALS:
        ids = tokenizer.encode(special)
        assert min(ids) >= 11
        assert tokenizer.decode(ids) == special


def test_nothing_is_cut_padded_added_or_left_to_chance() -> None:
    raw = changed(
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        },
    )
    raw["model"] |= {"dropout": 0.9, "unk_token": "<|endoftext|>"}
    text = " the old stone bridge"
    assert built(raw).encode(text) == TOKENIZER.encode(text)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ude00\ud83d"])
def test_lone_surrogates_are_the_callers_fault(text: str) -> None:
    with pytest.raises(RequestError, match="surrogate") as caught:
        TOKENIZER.encode(text)
    assert caught.value.param == "text"


@pytest.mark.parametrize(
    "text",
    [
        " " * 100_000,
        " " * 99_999 + "a",
        " \t" * 50_000,
        "a" * 100_000,
        "\n" * 100_000,
        "'" * 100_000,
        "é" * 50_000,
        "the " * 25_000,
        SPECIALS[0] * 8_000,
    ],
    ids=lambda text: repr(text[:3]),
)
def test_long_texts_take_no_time(text: str) -> None:
    started = time.perf_counter()
    ids = TOKENIZER.encode(text)
    assert time.perf_counter() - started < 2
    assert TOKENIZER.decode(ids) == text


# Decoding


@pytest.mark.parametrize("row", ROWS["decode"], ids=lambda row: str(row["ids"][0]))
def test_golden_decode(row: dict[str, Any]) -> None:
    assert TOKENIZER.decode(row["ids"]) == row["decoded_skip_special"]


def pushed(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = tokenizer.decoder()
    return "".join(map(decoder.push, ids)) + decoder.flush()


def test_decoding_equals_the_library_on_20000_random_sequences() -> None:
    dice = random.Random(0)
    single_bytes = [i for i in range(VOCAB) if len(TOKENIZER.token_bytes(i)) == 1]
    high_bytes = [i for i in single_bytes if TOKENIZER.token_bytes(i) >= b"\x80"]
    assert (len(single_bytes), len(high_bytes)) == (256, 128)
    broken = 0
    for turn in range(20_000):
        pool = (range(VOCAB), single_bytes, high_bytes)[turn % 3]
        ids = dice.choices(pool, k=dice.randint(0, 12))
        expected = LIBRARY.decode(ids, skip_special_tokens=True)
        assert TOKENIZER.decode(ids) == expected, ids
        assert pushed(TOKENIZER, ids) == expected, ids
        broken += "\ufffd" in expected
    assert broken > 10_000


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_push_returns_half_a_character(text: str) -> None:
    decoder = TOKENIZER.decoder()
    seen = ""
    for token_id in TOKENIZER.encode(text):
        seen += decoder.push(token_id)
        assert text.startswith(seen)
    assert decoder.flush() == ""
    assert seen == text


def test_an_unfinished_character_is_held_until_flush() -> None:
    *most, last = TOKENIZER.encode("🙂")
    decoder = TOKENIZER.decoder()
    assert [decoder.push(i) for i in most] == [""] * len(most)
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
    assert "".join(decoder.push(i) for i in (*most, last)) == "🙂"


def test_special_and_unknown_ids_have_no_bytes() -> None:
    for token_id in (*range(11), 500, 511, 51199, -1, 1 << 40):
        assert TOKENIZER.token_bytes(token_id) == b""
    assert TOKENIZER.token_bytes(TOKENIZER.encode("a")[0]) == b"a"
    assert TOKENIZER.decode([0, *TOKENIZER.encode("a"), 511]) == "a"


def test_added_tokens_decode_as_in_the_library() -> None:
    contents = ["<tag>", "   ", "日本", "ünü", "\n\n"]
    raw = changed(added_tokens=[*RAW["added_tokens"], *(added(500 + i, c) for i, c in enumerate(contents))])
    library, tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw)), built(raw)
    for token_id in range(500, 500 + len(contents)):
        assert tokenizer.decode([token_id]) == library.decode([token_id])


def test_the_alphabet_is_the_librarys() -> None:
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256
    assert set(alphabet) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert alphabet[ord("a")] == "a"
    assert alphabet[ord(" ")] == "Ġ"
    assert alphabet[ord("\n")] == "Ċ"


# Files


def gpt2_family() -> dict[str, Any]:
    """As GPT-2 and CodeGen: id 0 is "!", and <|endoftext|> comes last."""
    vocab = {char: i for i, char in enumerate(sorted(byte_alphabet()))}
    end = added(256, "<|endoftext|>", special=True)
    return changed(added_tokens=[end], model={"type": "BPE", "vocab": vocab, "merges": []})


def without_bytes(raw: dict[str, Any]) -> dict[str, Any]:
    for char in "az":
        del raw["model"]["vocab"][char]
    return {**raw, "model": {**raw["model"], "merges": []}}


MISFITS: dict[str, tuple[Callable[[], object], str]] = {
    "other-family": (gpt2_family, r"0 \('!'\).* must be added"),
    "not-added": (lambda: changed(added_tokens=RAW["added_tokens"][:9]), r"ids 9 \("),
    "missing-bytes": (lambda: without_bytes(changed()), "no token for 2 of the 256 bytes"),
    "not-bpe": (
        lambda: changed(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
        "no BPE tokenizer",
    ),
    "not-byte-level": (lambda: changed(pre_tokenizer={"type": "Whitespace"}), "not byte-level"),
    "no-decoder": (lambda: changed(decoder=None), "not byte-level"),
    "list": (list, "no BPE tokenizer"),
    "no-model": (dict, "no BPE tokenizer"),
    "bad-vocab": (lambda: changed(model={"type": "BPE", "vocab": [], "merges": []}), "no usable"),
    "bad-merges": (lambda: changed(model={**RAW["model"], "merges": [["no", "such"]]}), "no usable"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_files_that_do_not_fit(name: str, tmp_path: Path) -> None:
    make, message = MISFITS[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(make()))
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_file(path, TOKENS, VOCAB)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[" * 100_000, b"not json"], ids=repr)
def test_files_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenizerError):
        Tokenizer.from_file(path, TOKENS, VOCAB)


def test_every_id_must_be_below_the_models_vocabulary() -> None:
    assert built(RAW, 500).token_bytes(499)
    with pytest.raises(TokenizerError, match="largest id is 499, the model's vocabulary has 499"):
        built(RAW, 499)


def test_byte_level_may_be_part_of_a_sequence() -> None:
    split = {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False}
    level = {**RAW["pre_tokenizer"], "use_regex": False}
    tokenizer = built(changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]}))
    assert tokenizer.decode(tokenizer.encode("cat 12 <|endoftext|>")) == "cat 12 <|endoftext|>"


# Finding one


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A hub whose starmie-v1 is the golden tokenizer; the list gathers what is fetched."""
    fetched: list[tuple[str, str]] = []

    def download(repo_id: str, filename: str, **_: object) -> str:
        fetched.append((repo_id, filename))
        return str(FILE)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return fetched


def test_the_directorys_file_is_taken_if_it_fits(hub: list[tuple[str, str]]) -> None:
    assert find_tokenizer(None, CHECKPOINT, TOKENS, VOCAB).encode("cat") == [77, 284]
    assert hub == []


@pytest.mark.parametrize("progress", [True, False])
def test_a_stale_file_is_passed_over_for_the_hub(tmp_path: Path, hub: list[tuple[str, str]], progress: bool) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(gpt2_family()))
    assert find_tokenizer(None, tmp_path, TOKENS, VOCAB, progress=progress).encode("cat") == [77, 284]
    assert find_tokenizer(None, tmp_path / "nowhere", TOKENS, VOCAB, progress=progress).encode("cat") == [77, 284]
    assert find_tokenizer(None, None, TOKENS, VOCAB, progress=progress).encode("cat") == [77, 284]
    assert hub == [(HUB_REPOSITORY, "tokenizer.json")] * 3


def test_an_explicit_file_is_taken_or_refused(tmp_path: Path, hub: list[tuple[str, str]]) -> None:
    assert find_tokenizer(FILE, tmp_path, TOKENS, VOCAB).encode("cat") == [77, 284]
    stale = tmp_path / "mine.json"
    stale.write_text(json.dumps(gpt2_family()))
    with pytest.raises(TokenizerError, match=r"mine\.json does not fit"):
        find_tokenizer(stale, CHECKPOINT, TOKENS, VOCAB)
    assert hub == []


def test_without_file_and_hub_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    (tmp_path / "tokenizer.json").write_text(json.dumps(gpt2_family()))
    with pytest.raises(TokenizerError, match=r"must be added .*starmie-v1 cannot be fetched.*tokenizer\.json"):
        find_tokenizer(None, tmp_path, TOKENS, VOCAB)


def test_control_ids_follow_the_config() -> None:
    with pytest.raises(TokenizerError, match=r"ids 12 \("):
        Tokenizer.from_file(FILE, TokenConfig(coord_id=12), VOCAB)
