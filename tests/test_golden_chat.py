"""Conversations against the golden data: layout of the prompt, blocks of its images, answers."""

from __future__ import annotations

import pytest

import mdinfer
from mdinfer.kernels import TokenKind
from mdinfer.skills import compile_request
from tests.golden_data import CHECKPOINTS, Case, cases, chat_of, check

CASES = [pytest.param(name, case, id=case["id"]) for name in CHECKPOINTS for case in cases(name, "chat")]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_layout_is_golden(engines: dict[str, mdinfer.Engine], name: str, case: Case) -> None:
    """Token ids and image positions in their order; each image in its place among the pictures."""
    compiled = compile_request(chat_of(case), engines[name]._context)
    prompt, at, pictures = compiled.prompt, 0, []
    for part in case["layout"]:
        if "ids" in part:
            end = at + len(part["ids"])
            assert prompt.tokens[at:end].tolist() == part["ids"]
            assert set(prompt.kinds[at:end].tolist()) == {TokenKind.TEXT}
        else:
            end = at + part["positions"]
            assert set(prompt.kinds[at:end].tolist()) == {TokenKind.IMAGE}
            assert at in prompt.images
            pictures.append(case["images"][part["image"]])
        at = end
    assert at == len(prompt) == case["prompt_positions"]
    assert [str(p.source).endswith(path) for p, path in zip(compiled.pictures, pictures, strict=True)] == [True] * len(
        pictures
    )


@pytest.mark.parametrize(("name", "case"), CASES)
def test_visible_is_what_the_golden_blocks_say(engines: dict[str, mdinfer.Engine], name: str, case: Case) -> None:
    expected: list[int] = []
    for block, length in case["block_id_runs"]:
        start, end = len(expected), len(expected) + length
        expected += [end] * length if block >= 0 else range(start + 1, end + 1)
    prompt = compile_request(chat_of(case), engines[name]._context).prompt
    assert prompt.visible.tolist() == expected


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_answer_is_golden(engines: dict[str, mdinfer.Engine], name: str, case: Case) -> None:
    """Asked through `chat`, as a user would."""
    request = chat_of(case)
    result = engines[name].chat(
        request.messages, reasoning=request.reasoning, temperature=0, max_tokens=request.max_tokens
    )
    check(case, result)
    assert result.usage.image_tokens == 729 * len(compile_request(request, engines[name]._context).pictures)
