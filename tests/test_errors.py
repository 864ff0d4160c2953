"""Errors cross process boundaries and say what they said."""

from __future__ import annotations

import pickle

import pytest

from mdinfer import errors

MADE = [
    errors.ConfigError("a"),
    errors.CheckpointError("a"),
    errors.TokenizerError("a"),
    errors.RequestError("a", param="x"),
    errors.ImageError("a", param="messages.0"),
    errors.PromptTooLongError(5, 3, param="messages"),
    errors.PromptTooLongError(5, 3, counted=False),
    errors.QueueFullError("a"),
    errors.RequestFailedError("a"),
    errors.OutOfMemoryError("a"),
    errors.DeadlineError("a"),
    errors.RequestCancelledError("a"),
    errors.EngineDeadError("a"),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_pickling(error: errors.MdinferError) -> None:
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_every_error_is_tried() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds - {errors.MdinferError} == {type(error) for error in MADE}


def test_a_lower_bound_says_so() -> None:
    assert "at least 5 tokens" in str(errors.PromptTooLongError(5, 3, counted=False))
    assert "at least 5" not in str(errors.PromptTooLongError(5, 3))
