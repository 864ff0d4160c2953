"""Pictures shared by requests: which object stands for a picture, and for how long."""

from __future__ import annotations

import torch

from mdinfer.data_url import DataUrl
from mdinfer.pictures import LoadedPicture, PictureStore, file_digest
from tests.scheduled import picture


def test_crops_until_features() -> None:
    one = picture("a", crops=5)
    assert (one.encoded, one.crop_count) == (False, 5)
    one.encode(torch.zeros(3))
    assert (one.encoded, one.crop_count, one.crops) == (True, 0, None)


def test_the_first_stands_for_all_that_show_the_same_in_its_namespace() -> None:
    store, first = PictureStore(4), picture("a")
    assert store.shared(first, "") is first
    assert store.shared(picture("a"), "") is first
    other, elsewhere = picture("b"), picture("a")
    assert store.shared(other, "") is other
    assert store.shared(elsewhere, "key") is elsewhere
    assert len(store) == 3


def test_the_one_used_longest_ago_goes() -> None:
    store, first = PictureStore(2), picture("a")
    store.shared(first, "")
    store.shared(picture("b"), "")
    store.shared(picture("a"), "")
    store.shared(picture("c"), "")
    assert len(store) == 2
    assert store.shared(picture("a"), "") is first
    again = picture("b")
    assert store.shared(again, "") is again


def test_a_picture_that_the_caller_encoded_is_the_callers() -> None:
    store, crops = PictureStore(4), picture("a")
    encoded = LoadedPicture(digest=crops.digest, features=torch.zeros(3))
    assert store.shared(encoded, "") is encoded
    assert store.shared(crops, "") is crops


def test_a_picture_is_known_where_it_was_seen_and_stays_as_long_as_it_is_asked_for() -> None:
    store, first = PictureStore(2), picture("a")
    assert store.known(first.digest, "") is None
    store.shared(first, "")
    store.shared(picture("b"), "")
    assert store.known(first.digest, "") is first
    assert store.known(first.digest, "key") is None
    store.shared(picture("c"), "")
    assert store.known(first.digest, "") is first
    assert store.known(picture("b").digest, "") is None


def test_a_picture_in_use_is_found_however_few_are_kept() -> None:
    store, first = PictureStore(0), picture("a")
    assert store.shared(first, "") is first
    assert store.shared(picture("a"), "") is first
    assert store.known(first.digest, "") is first
    store.forget([picture("a")], "")  # another one that shows the same
    store.forget([first], "key")
    assert store.known(first.digest, "") is first
    digest = first.digest
    del first
    assert store.known(digest, "") is None


def test_a_forgotten_picture_is_made_anew() -> None:
    store, first, other = PictureStore(4), picture("a"), picture("b")
    store.shared(first, "")
    store.shared(other, "")
    store.forget([first], "")
    again = picture("a")
    assert store.shared(again, "") is again
    assert store.shared(picture("b"), "") is other


def test_a_picture_is_found_by_the_file_it_came_in() -> None:
    store, first = PictureStore(2), picture("a")
    file = file_digest(b"...")
    assert store.in_file(file, "") is None
    store.found(file, first.digest, "")
    assert store.in_file(file, "") is None  # the file is known, the picture is not, or no more
    store.shared(first, "")
    assert store.in_file(file, "") is first
    assert store.in_file(file, "key") is None
    store.forget([first], "")
    assert store.in_file(file, "") is None


def test_as_many_files_are_remembered_as_their_pictures_may_need() -> None:
    store, first = PictureStore(1), picture("a")
    store.shared(first, "")
    files = [file_digest(bytes([i])) for i in range(5)]
    for file in files:
        store.found(file, first.digest, "")
    assert [store.in_file(file, "") for file in files] == [None, *[first] * 4]


def test_a_file_is_no_data_url() -> None:
    assert file_digest("data:,a") != file_digest(b"data:,a")
    assert file_digest("data:,\ud800") != file_digest("data:,?")
    assert file_digest(DataUrl("data:,a", (memoryview(b"b"), memoryview(b"cd")))) == file_digest("data:,abcd")
