from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.routing import Route

from mdinfer.server import openapi_schemas
from mdinfer.server.openapi import openapi
from mdinfer.server.schema import NO_OPS
from mdinfer.server.settings import Settings
from tests.server import shapes
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import MODEL, Live, live_server

QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def served() -> Iterator[Live]:
    with live_server(FakeEngine(), max_body_bytes=1 << 20) as live:
        yield live


def schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def test_it_lists_every_route(served: Live) -> None:
    document = served.http.get("/openapi.json").json()
    app = served.server.config.app
    assert isinstance(app, Starlette)
    routes = {route.path.replace("{model:path}", "{model}") for route in app.routes if isinstance(route, Route)}
    assert set(document["paths"]) == routes
    for schema_of_body in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema_of_body)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("chat/completions", {**QUESTION, "n": 2, "logprobs": True, "top_logprobs": 3, "reasoning": True}, "Chat"),
        ("query", {"question": "?", "reasoning": True}, "Query"),
        ("query", {"question": "?", "settings": {"max_tokens": 3}, "spatial_refs": [[0.5, 0.5]]}, "Query"),
        ("caption", {"length": "short"}, "Caption"),
        ("detect", {"object": "cat"}, "Detect"),
        ("point", {"object": "cat"}, "Point"),
    ],
)
def test_requests_and_answers_fit_it(served: Live, data_url: str, path: str, body: dict[str, Any], name: str) -> None:
    document = served.http.get("/openapi.json").json()
    if name in ("Caption", "Detect", "Point"):
        body = {"image_url": data_url, **body}
    operation = document["paths"][f"/v1/{path}"]["post"]
    response = served.http.post(f"/v1/{path}", json=body)
    assert response.status_code == 200
    shapes.check(schema(document, f"{name}Request"), body)
    described = operation["responses"]["200"]["content"]["application/json"]["schema"]
    shapes.check({**described, "components": document["components"]}, response.json())


def test_its_examples_work(served: Live) -> None:
    document = served.http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        if "post" in operations:
            body = operations["post"]["requestBody"]["content"]["application/json"]
            shapes.check({**body["schema"], "components": document["components"]}, body["example"])
            assert served.http.post(path, json=body["example"]).status_code == 200


def test_what_cannot_be_obeyed_is_described_as_it_is_refused() -> None:
    """Values that ask for nothing fit, and no others."""
    request = openapi(Settings())["components"]["schemas"]["ChatRequest"]["properties"]
    assert openapi_schemas.NO_OPS.keys() == NO_OPS.keys()
    values: tuple[Any, ...] = (
        [],
        {},
        0,
        1,
        False,
        "auto",
        "none",
        "x",
        {"type": "text"},
        {"type": "x"},
        ["text"],
        ["audio"],
        [{}],
    )
    for name, is_no_op in NO_OPS.items():
        fits = Draft202012Validator(request[name]).is_valid
        assert fits(None)
        for value in values:
            assert fits(value) is bool(is_no_op(value)), (name, value)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_security_is_what_the_server_asks_for(host: str) -> None:
    document = openapi(Settings(host=host, api_keys=("k",)))
    assert document["security"]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert ("security" in document["paths"]["/metrics"]["get"]) is (host == "127.0.0.1")
    assert openapi(Settings())["security"] == []


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs the extra `clients`")
@pytest.mark.parametrize("engine", [FakeEngine(), FakeEngine(Script(finish_reason="length"))], ids=["stop", "length"])
def test_schemathesis_finds_no_fault(engine: FakeEngine) -> None:
    """Generated requests, good and bad ones: no 5xx, and every answer is as the document says."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    checks += ",negative_data_rejection,unsupported_method"
    options = ["--phases", "examples,coverage,fuzzing", "--mode", "all", "--checks", checks, "--max-examples", "60"]
    with live_server(engine, max_body_bytes=1 << 20) as live:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json", "--seed", "1", *options],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert httpx.get(f"{live.url}/health").status_code == 200
        assert not live.service.running
