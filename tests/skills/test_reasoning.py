"""Reasoning traces: their text in chunks, the points that ground them, the passage to the answer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mdinfer.result import XY, Event, Grounding
from mdinfer.sequence import SampledToken
from mdinfer.skills.text_output import TextOutput
from tests.skills.tokens import BYTES, FIRST, IDS, feed, text_tokens, token

ANSWER, START, END = token(IDS.answer_id), token(IDS.start_ground_points_id), token(IDS.end_ground_id)


def coord(value: float) -> SampledToken:
    return token(IDS.coord_id, value)


def output(stop: tuple[str, ...] = ()) -> TextOutput:
    return TextOutput(IDS, BYTES, stop=stop, logprobs=False, reasoning=True)


def test_a_trace_then_an_answer() -> None:
    one = output()
    tokens = [*text_tokens(b"hm"), ANSWER, *text_tokens(b"ok")]
    events, _ = feed(one, tokens)
    assert events == [Event(reasoning="h"), Event(reasoning="m"), Event(text="o"), Event(text="k")]
    fields = one.fields()
    assert (fields["reasoning"], fields["text"], fields["grounding"]) == ("hm", "ok", [])
    assert fields["reasoning_token_ids"] == [t.token for t in tokens[:2]]  # without the closing one
    assert fields["token_ids"] == [t.token for t in tokens[3:]]


def test_chunks_and_their_points() -> None:
    one = output()
    tokens = [
        *text_tokens(b"no points "),
        START,
        coord(0.25),
        coord(0.5),
        *text_tokens(b"two"),
        coord(0.75),
        coord(1.0),
        END,
        *text_tokens(b" and "),
        START,
        coord(0.125),
        coord(0.375),
        coord(0.625),
        *text_tokens(b"odd"),
        ANSWER,
    ]
    events, _ = feed(one, tokens)
    fields = one.fields()
    assert fields["reasoning"] == "no points two and odd" == "".join(event.reasoning for event in events)
    assert fields["grounding"] == [
        Grounding(10, 13, [XY(0.25, 0.5), XY(0.75, 1.0)]),
        Grounding(18, 21, [XY(0.125, 0.375)]),
    ]
    assert fields["reasoning_token_ids"] == [t.token for t in tokens[:-1]]


def test_one_coordinate_grounds_nothing() -> None:
    one = output()
    feed(one, [coord(0.5), *text_tokens(b"x"), END, coord(0.5), ANSWER])
    assert one.fields()["grounding"] == []


def test_a_trace_cut_short_keeps_its_last_chunk() -> None:
    one = output()
    events, _ = feed(one, [coord(0.5), coord(0.25), *text_tokens("é".encode()[:1])])
    assert events == [Event(reasoning="\ufffd")]
    assert one.fields()["grounding"] == [Grounding(0, 1, [XY(0.5, 0.25)])]
    assert (one.fields()["text"], one.fields()["token_ids"]) == ("", [])


def test_a_character_broken_by_a_cut_ends_there() -> None:
    """Each chunk is decoded on its own, so its offsets are of whole characters."""
    one = output()
    half, rest = text_tokens("é".encode())
    events, _ = feed(one, [coord(0.5), coord(0.5), half, END, rest, ANSWER, half, rest])
    fields = one.fields()
    assert fields["reasoning"] == "\ufffd\ufffd" == "".join(event.reasoning for event in events)
    assert fields["grounding"] == [Grounding(0, 1, [XY(0.5, 0.5)])]
    assert fields["text"] == "é"


def test_stop_strings_are_for_the_answer_alone() -> None:
    one = output(stop=("x",))
    events, taken = feed(one, [*text_tokens(b"axb"), ANSWER, *text_tokens(b"cxd")])
    assert (one.fields()["reasoning"], one.fields()["text"], taken) == ("axb", "c", 6)
    assert one.complete
    assert [event.reasoning for event in events] == ["a", "x", "b", ""]


def test_a_trace_of_nothing() -> None:
    one = output()
    feed(one, [ANSWER, *text_tokens(b"ok")])
    assert (one.fields()["reasoning"], one.fields()["text"]) == ("", "ok")
    assert one.fields()["reasoning_token_ids"] == []


def test_a_coordinate_token_in_the_answer_is_no_text() -> None:
    one = output()
    feed(one, [ANSWER, *text_tokens(b"a"), token(IDS.coord_id), *text_tokens(b"b")])
    assert (one.fields()["text"], one.fields()["grounding"]) == ("ab", [])


TOKENS = st.one_of(
    st.sampled_from(list(b"ab\xc3\xa9\xe2\x82\xac")).map(lambda b: token(FIRST + b)),
    st.sampled_from([START, END]),
    st.integers(0, 1023).map(lambda b: coord(b / 1024)),
    st.just(token(IDS.size_id)),
)


@given(st.lists(TOKENS, max_size=30), st.booleans())
@settings(max_examples=300)
def test_any_trace(trace: list[SampledToken], ends: bool) -> None:
    """Against a split of the whole trace at its cuts."""
    chunks: list[list[SampledToken]] = [[]]
    for one in trace:
        if one in (START, END):
            chunks.append([])
        chunks[-1].append(one)
    text, grounding = "", []
    for chunk in chunks:
        start = len(text)
        text += b"".join(bytes([t.token - FIRST]) for t in chunk if t.token >= FIRST).decode("utf-8", "replace")
        values = [t.value[0] for t in chunk if t.token == IDS.coord_id]
        if len(values) >= 2:
            grounding.append((start, len(text), list(zip(values[::2], values[1::2], strict=False))))
    out = output()
    events, _ = feed(out, [*trace, *([ANSWER, *text_tokens(b"yes")] if ends else [])])
    fields = out.fields()
    assert fields["reasoning"] == text == "".join(event.reasoning for event in events)
    assert fields["grounding"] == grounding
    assert fields["reasoning_token_ids"] == [t.token for t in trace]
    assert fields["text"] == ("yes" if ends else "") == "".join(event.text for event in events)
