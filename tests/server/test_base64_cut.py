"""Base64 cut out of JSON: the value stays the same, and so does what is no JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdinfer.data_url import DataUrl
from mdinfer.large_bytes import Bytes
from mdinfer.server import base64_cut
from mdinfer.server.base64_cut import LEAST, cut
from mdinfer.server.body import decode_object
from mdinfer.server.errors import ApiError

LONG = "QUJD" * (LEAST // 4)
URL = f"data:image/png;base64,{LONG}"


def plain(value: Any) -> Any:
    """With strings for data URLs."""
    if isinstance(value, DataUrl):
        return str(value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def decoded(data: bytes, splits: list[int]) -> Any:
    borders = [0, *sorted(splits), len(data)]
    rest = cut([data[i:j] for i, j in pairwise(borders)])
    return rest.put_back(msgspec.json.decode(rest.data))


def size_of_rest(value: object) -> int:
    return len(cut([json.dumps(value).encode()]).data)


texts = st.one_of(
    st.text(max_size=12),
    st.builds(
        "{}{}{}".format,
        st.text(max_size=3),
        st.sampled_from([";base64,", "data:;base64,", ";base64"]),
        st.text(alphabet='AZaz09+/=%\\" é\n', max_size=20),
    ),
)
values = st.recursive(
    st.one_of(texts, st.integers(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(texts, st.sampled_from(["url", "image_url"])), inner, max_size=4),
    ),
)


@pytest.fixture(scope="module", autouse=True)
def no_shortest() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base64_cut, "LEAST", 4)
        yield


@given(value=values, escape=st.booleans(), data=st.data())
def test_any_value_in_any_pieces(value: Any, escape: bool, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=escape).encode()
    splits = data.draw(st.lists(st.integers(0, len(text)), max_size=4))
    assert plain(decoded(text, splits)) == value


@given(value=values, data=st.data())
def test_what_is_no_json_stays_none(value: Any, data: st.DataObject) -> None:
    text = bytearray(json.dumps(value).encode())
    seed = data.draw(st.integers(0, 1 << 30))
    dice = random.Random(seed)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(text) + 1)
        text[at : at + dice.randint(0, 2)] = dice.choice([b'"', b"\\", b"\x01", b"\xff", b";base64,", b"}", b"A"])
    try:
        expected = msgspec.json.decode(bytes(text))
    except (msgspec.DecodeError, UnicodeDecodeError):
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            decoded(bytes(text), [len(text) // 2])
    else:
        assert plain(decoded(bytes(text), [len(text) // 2])) == expected


def test_pictures_come_in_pieces_and_all_else_as_it_was() -> None:
    value = {"url": URL, "text": URL, URL: 1, "parts": [URL, {"image_url": URL}]}
    found = decoded(json.dumps(value).encode(), [50_000, 100_000])
    assert isinstance(found["url"], DataUrl) and isinstance(found["parts"][1]["image_url"], DataUrl)
    assert [type(found[key]) for key in ("text", "parts")] == [str, list] and type(found["parts"][0]) is str
    assert list(found) == list(value) and plain(found) == value
    assert len(found["url"]) == len(URL) and LONG[:100] not in repr(found["url"])
    assert size_of_rest(value) < 1000


@pytest.mark.parametrize("bad", ["\\", "%", "\x7f", "é"])
def test_what_is_not_plain_stays_in(bad: str) -> None:
    value = {"url": f"data:;base64,{LONG}{bad}"}
    assert size_of_rest(value) > len(LONG)
    assert decoded(json.dumps(value).encode(), []) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"b" ;base64,%s","c":1}',
        '{"a":;base64,%s"}',
        '{"a":"\\";base64,%s}',
        '{"a":"x;base64,%s',
        '{"a":"x;base64,%s\n"}',
        '{"a":"x;base64,%s\udcff"}',
    ],
)
def test_refused_as_a_whole_refused_without_its_base64(text: str) -> None:
    data = (text % LONG).encode("utf-8", "surrogateescape")
    with pytest.raises(ApiError):
        decode_object(data)
    with pytest.raises(ApiError):
        decode_object(cut([data]).data)


@given(value=values, data=st.data())
def test_an_error_tells_the_place_in_the_whole(value: Any, data: st.DataObject) -> None:
    text = json.dumps([value, URL, value]).encode()
    at = data.draw(st.integers(0, len(text) - 1).filter(lambda i: text[i] in b'",:[]{}'))
    text = text[:at] + data.draw(st.sampled_from([b"", b"?", b"\\?"])) + text[at + 1 :]
    rest = cut([text])
    assert message_of(rest.data, rest.place) == message_of(text)


def message_of(data: Bytes, place: Callable[[int], int] = int) -> str:
    with pytest.raises(ApiError) as caught:
        decode_object(data, place)
    return caught.value.message


def test_many_labels_take_no_time() -> None:
    value = [";base64," * 10] * 50_000
    assert decoded(json.dumps(value).encode(), []) == value
