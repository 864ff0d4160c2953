"""Which URLs are read, which are refused, and that refusals are told without their payload."""

from __future__ import annotations

import base64
import contextlib
import time
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdinfer.data_url import DataUrl, decode_data_url
from mdinfer.errors import ImageError

DATA = bytes(range(256)) * 3 + b"\xfb\xff"
STANDARD = base64.b64encode(DATA).decode()
URL_SAFE = base64.urlsafe_b64encode(DATA).decode()


def refusal(url: object) -> str:
    with pytest.raises(ImageError) as caught:
        decode_data_url(url, param="messages.0.content.1.image_url")  # type: ignore[arg-type]
    assert caught.value.param == "messages.0.content.1.image_url"
    return str(caught.value)


@pytest.mark.parametrize(
    "label",
    [
        "data:image/png;base64,",
        "DATA:image/png;base64,",
        "Data:;BASE64,",
        "data:;base64,",
        "data:image/jpeg;name=a.jpg;charset=utf-8;base64,",
        "data:text/html; base64 ,",
        "\n data:image/png;base64,",
    ],
)
def test_labels(label: str) -> None:
    assert decode_data_url(label + STANDARD) == DATA


@pytest.mark.parametrize(
    "payload",
    [
        STANDARD,
        STANDARD.rstrip("="),
        STANDARD.rstrip("=") + "=" * 2,
        URL_SAFE,
        URL_SAFE.rstrip("="),
        URL_SAFE[:340] + STANDARD[340:],
        "\r\n".join(STANDARD[i : i + 76] for i in range(0, len(STANDARD), 76)),
        " \t" + " ".join(STANDARD) + "\n",
        quote(STANDARD, safe=""),
        "".join(f"%{ord(char):02x}" for char in STANDARD),
        STANDARD.replace("=", "%3d") + "%0A%0d%20",
    ],
    ids=[
        "standard",
        "unpadded",
        "overpadded",
        "url-safe",
        "url-safe-unpadded",
        "mixed",
        "lines",
        "spaced",
        "quoted",
        "all-percent",
        "lower-percent",
    ],
)
def test_payloads(payload: str) -> None:
    assert decode_data_url("data:image/png;base64," + payload) == DATA


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=200), st.booleans(), st.booleans())
def test_round_trip(data: bytes, url_safe: bool, percent: bool) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    assert decode_data_url("data:;base64," + (quote(text, safe="") if percent else text)) == data


@pytest.mark.parametrize("shift", range(4))
def test_percent_escapes_across_chunk_borders(shift: int) -> None:
    text = "A" * shift + "%41%42%43" * 400_000  # longer than two chunks, escapes at every offset
    text += "A" * (-(shift + 1_200_000) % 4)
    plain = "A" * shift + "ABC" * 400_000 + "A" * (-(shift + 1_200_000) % 4)
    assert decode_data_url("data:;base64," + text)[:] == base64.b64decode(plain)


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("http://127.0.0.1/secret", "http"),
        ("https://example.com/secret.png", "https"),
        ("file:///etc/secret", "file"),
        ("FTP://secret", "FTP"),
        ("javascript:secret", "javascript"),
        ("blob:secret", "blob"),
    ],
)
def test_other_schemes_are_named_and_refused(url: str, scheme: str) -> None:
    message = refusal(url)
    assert repr(scheme) in message
    assert "base64 data: URL" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    "url", ["", "//host/secret", "/etc/secret", "secret.png", STANDARD, "é:secret", ":secret", "x" * 99 + ":secret"]
)
def test_no_scheme(url: str) -> None:
    message = refusal(url)
    assert "no scheme" in message
    assert "secret" not in message
    assert STANDARD[:40] not in message


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:,secret",
        "data:base64,c2VjcmV0",
        "data:image/png,secret",
        "data:image/svg+xml;utf8,<svg>secret</svg>",
        "data:image/png;base64",
        "data:image/png;base64;charset=utf-8,c2VjcmV0",
        "data:image/png;xbase64,c2VjcmV0",
        "data:image/png;" + "x" * 2000 + ";base64,c2VjcmV0",
    ],
)
def test_data_urls_that_are_not_base64(url: str) -> None:
    message = refusal(url)
    assert ";base64," in message
    assert "secret" not in message
    assert "c2VjcmV0" not in message


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("", "no data"),
        (" \n", "no data"),
        ("==", "no data"),
        ("AAAA!AAAA", "alphabet"),
        ("AA.A", "alphabet"),
        ("AAAA#top", "alphabet"),
        ("AA=A", "alphabet"),
        ("AAAA=AAAA", "alphabet"),
        ("AAAA\0", "alphabet"),
        ("AAA===", "padding"),
        ("AAAAA", "impossible length of 5"),
        ("AAAÄ", "ASCII"),
        ("AAA\ud800", "ASCII"),
        ("AA%", "incomplete"),
        ("AA%4", "incomplete"),
        ("AA%zz", "hexadecimal"),
        ("AA%%41", "hexadecimal"),
        ("AA%2541", "alphabet"),
        ("AA%ff", "alphabet"),
    ],
)
def test_bad_payloads_are_refused_never_trimmed(payload: str, reason: str) -> None:
    message = refusal("data:image/png;base64," + payload)
    assert reason in message
    assert payload.strip() == "" or payload not in message


@pytest.mark.parametrize("url", [None, 3, b"data:;base64,AAAA", ["data:"], {"url": "data:"}])
def test_only_strings(url: object) -> None:
    assert type(url).__name__ in refusal(url)


@pytest.mark.parametrize(
    "payload",
    ["A" * (1 << 24), "%41" * (1 << 22), " " * (1 << 24), "!" * (1 << 24), "=" * (1 << 24), "A\n" * (1 << 23)],
)
def test_time_is_linear(payload: str) -> None:
    started = time.perf_counter()
    with contextlib.suppress(ImageError):
        decode_data_url("data:;base64," + payload)
    assert time.perf_counter() - started < 2


def outcome(url: str | DataUrl) -> bytes | str:
    try:
        return decode_data_url(url)[:]
    except ImageError as error:
        return str(error)


@given(
    label=st.sampled_from(["data:;base64,", "data:image/png;base64,%41", "data:;x,", "http:;base64,", "data:;base64"]),
    payload=st.text(alphabet="ABab01+/-_= \n!", max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=3),
)
def test_in_pieces_it_is_what_it_is_in_one(label: str, payload: str, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    data = payload.encode()
    pieces = tuple(memoryview(data)[i:j] for i, j in pairwise(borders))
    url = DataUrl(label, pieces)
    assert str(url) == label + payload and len(url) == len(label + payload)
    assert outcome(url) == outcome(label + payload)


def test_a_url_in_pieces_is_shown_as_text() -> None:
    assert repr(DataUrl("data:;base64,", (memoryview(b"QUJD"),))) == "'data:;base64,...'"


def test_large_payloads() -> None:
    data = bytes(range(256)) * 4000
    text = base64.b64encode(data)
    url = DataUrl("data:;base64,", (memoryview(text)[:999_999], memoryview(text)[999_999:]))
    assert decode_data_url(url)[:] == decode_data_url(str(url))[:] == data
