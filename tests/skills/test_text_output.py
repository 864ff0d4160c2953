"""Text from tokens: streaming of broken UTF-8, stop strings across tokens, log-probabilities."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdinfer.config import ModelConfig
from mdinfer.result import Event
from mdinfer.sequence import SampledToken
from mdinfer.skills.text_output import TextOutput
from mdinfer.tokenizer import Tokenizer
from tests.golden_data import checkpoint
from tests.skills.tokens import BYTES, FIRST, IDS, feed, text_tokens, token, tokenizer_of


def output(
    tokenizer: Tokenizer = BYTES, stop: Sequence[str] = (), *, logprobs: bool = False, reasoning: bool = False
) -> TextOutput:
    return TextOutput(IDS, tokenizer, stop=tuple(stop), logprobs=logprobs, reasoning=reasoning)


def known(data: bytes) -> str:
    """The characters that bytes so far make certain: all but a tail that may be the start of one."""
    for cut in (3, 2, 1):
        try:
            data[-cut:].decode()
        except UnicodeDecodeError as error:
            if len(data) >= cut and error.start == 0 and error.reason == "unexpected end of data":
                return data[:-cut].decode("utf-8", "replace")
    return data.decode("utf-8", "replace")


def expected(pieces: Sequence[bytes], stop: Sequence[str]) -> tuple[str, int]:
    """The text, and how many pieces it took: up to the first stop string in what is known after a piece."""
    for count in range(1, len(pieces) + 1):
        text = known(b"".join(pieces[:count]))
        if any(s in text for s in stop):
            return text[: min(text.find(s) for s in stop if s in text)], count
    text = b"".join(pieces).decode("utf-8", "replace")
    found = [text.find(s) for s in stop if s in text]
    return text[: min(found)] if found else text, len(pieces)


def check(pieces: Sequence[bytes], stop: Sequence[str]) -> None:
    one = output(tokenizer_of(pieces), stop)
    tokens = [token(FIRST + i) for i in range(len(pieces))]
    events, taken = feed(one, tokens)
    text, count = expected(pieces, stop)
    fields = one.fields()
    assert fields["text"] == text
    assert "".join(event.text for event in events) == text
    assert taken == count
    assert fields["token_ids"] == [FIRST + i for i in range(count)]
    assert (fields["reasoning"], fields["reasoning_token_ids"], fields["grounding"]) == (None, [], [])


# Bytes that are likely to form, and to break, characters of one to four bytes.
BROKEN = st.sampled_from(
    [b"a", b"b", b"\xe2", b"\x82", b"\xac", b"\xf0", b"\x9f", b"\x99", b"\x82", b"\xc3", b"\xff", b"\xed\xa0"]
)
PIECES = st.lists(
    st.one_of(BROKEN, st.binary(max_size=3), st.sampled_from(["ab", "é", "€", "🙂", " ", "aab"]).map(str.encode)),
    max_size=24,
)
STOPS = st.lists(st.sampled_from(["a", "ab", "aab", "aaba", "bb", "€", "é€", "🙂", "b a"]), max_size=4)


@given(PIECES)
@settings(max_examples=300)
def test_events_join_to_the_text(pieces: list[bytes]) -> None:
    check(pieces, ())


@given(PIECES, STOPS)
@settings(max_examples=500)
def test_stop_strings_anywhere(pieces: list[bytes], stop: list[str]) -> None:
    check(pieces, stop)


@given(st.lists(st.integers(0, 511), max_size=40))
@settings(max_examples=200)
def test_random_tokens_of_a_real_tokenizer(ids: list[int]) -> None:
    """Ids without a token, and special ones, are no text."""
    real = tiny_tokenizer()
    one = output(real)
    events, _ = feed(one, [token(i) for i in ids])
    assert one.fields()["text"] == "".join(event.text for event in events) == real.decode(ids)


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    path = checkpoint("tiny-a")
    config = ModelConfig.from_file(path / "config.json")
    return Tokenizer.from_file(path / "tokenizer.json", config.tokenizer, config.text.vocab_size)


@pytest.mark.parametrize("stop", [("END",), ("END", "ND"), ("N",), ("zzz", "END w"), ("ENDENDER",)], ids=str)
def test_a_stop_string_at_every_split(stop: tuple[str, ...]) -> None:
    """Every way to cut a text around its stop string into up to four tokens."""
    text = b"say EN END world"
    for cuts in range(4):
        for places in itertools.combinations(range(1, len(text)), cuts):
            edges = [0, *places, len(text)]
            check([text[a:b] for a, b in itertools.pairwise(edges)], stop)


def test_a_stop_string_may_be_held_back_and_let_go() -> None:
    one = output(stop=["abcd"])
    assert [one.push(t) for t in text_tokens(b"xabc")] == [Event(text="x"), None, None, None]
    assert one.push(token(FIRST + ord("x"))) == Event(text="abcx")
    assert [one.push(t) for t in text_tokens(b"ab")] == [None, None]
    assert one.close() == Event(text="ab")
    assert one.fields()["text"] == "xabcxab"


def test_no_more_is_held_back_than_a_stop_string_needs() -> None:
    one = output(stop=["aab", "ba"])
    held = [one.push(t) for t in text_tokens(b"aaaa")]
    assert held == [None, None, Event(text="a"), Event(text="a")]


def test_characters_come_whole() -> None:
    one = output()
    found = [one.push(t) for t in text_tokens("é🙂".encode())]
    assert found == [None, Event(text="é"), None, None, None, Event(text="🙂")]


def test_nothing_follows_a_stop() -> None:
    one = output(stop=["!"])
    events, taken = feed(one, text_tokens(b"a!b"))
    assert (events, taken, one.complete) == ([Event(text="a")], 2, True)
    assert one.close() is None


def scored(data: bytes) -> list[SampledToken]:
    return [
        SampledToken(FIRST + b, 0, (0.0, 0.0), -0.5 - i, ((FIRST + b, -0.5 - i), (FIRST + 0x7A, -9.0)))
        for i, b in enumerate(data)
    ]


@pytest.mark.parametrize("stop", [(), ("cd",), ("zz",), ("ab",)])
def test_logprobs_of_events_join_to_those_of_the_result(stop: tuple[str, ...]) -> None:
    one = output(stop=stop, logprobs=True)
    events, taken = feed(one, scored("ab€cd".encode()))
    found = one.fields()["logprobs"]
    assert [entry for event in events for entry in event.logprobs or []] == found
    assert [entry.token_id for entry in found] == one.fields()["token_ids"]
    assert len(found) == taken
    assert found[0].token == "a"
    assert found[0].data == b"a"
    assert found[0].logprob == -0.5
    assert [(t.token_id, t.token, t.logprob) for t in found[0].top] == [
        (FIRST + 97, "a", -0.5),
        (FIRST + 122, "z", -9.0),
    ]


def test_a_token_that_is_part_of_a_character() -> None:
    one = output(logprobs=True)
    feed(one, scored("€".encode()))
    found = one.fields()["logprobs"]
    assert [entry.data for entry in found] == [b"\xe2", b"\x82", b"\xac"]
    assert [entry.token for entry in found] == ["\ufffd"] * 3
    assert one.fields()["text"] == "€"


def test_no_logprobs_unless_asked_for() -> None:
    one = output()
    events, _ = feed(one, scored(b"ab"))
    assert one.fields()["logprobs"] is None
    assert [event.logprobs for event in events] == [None, None]


def test_an_answer_without_tokens() -> None:
    one = output(stop=["a"])
    assert feed(one, []) == ([], 0)
    assert (one.fields()["text"], one.fields()["token_ids"]) == ("", [])
