"""GET /openapi.json: what this server's routes take and give, as OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from mdinfer import __version__
from mdinfer.server.openapi_schemas import EXAMPLES, SCHEMAS, Schema, chat_schema, reference
from mdinfer.server.settings import Settings

_KEYS: list[dict[str, list[str]]] = [{"bearer": []}, {"moondream": []}]


def openapi(settings: Settings) -> dict[str, Any]:
    open_to_all = not settings.api_keys
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mdinfer",
            "version": __version__,
            "description": "Moondream 3: OpenAI's chat completions and Moondream's own endpoints.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [] if open_to_all else _KEYS,
        "paths": _paths(settings),
        "components": {
            "schemas": {**SCHEMAS, "ChatRequest": chat_schema(settings.model_names)},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "moondream": {"type": "apiKey", "in": "header", "name": "X-Moondream-Auth"},
            },
        },
    }


def _paths(settings: Settings) -> dict[str, Any]:
    post = {
        "/v1/chat/completions": ("chatCompletions", "Continue a conversation", "ChatRequest", "ChatCompletion", True),
        "/v1/query": ("query", "Answer a question about an image, or without one", "QueryRequest", "Answer", True),
        "/v1/caption": ("caption", "Describe an image", "CaptionRequest", "Caption", True),
        "/v1/detect": ("detect", "Find the boxes of all objects of a kind", "DetectRequest", "Boxes", False),
        "/v1/point": ("point", "Find the centres of all objects of a kind", "PointRequest", "Points", False),
    }
    probes = {
        "/health": ("health", "Whether the process and its engine live", "Status"),
        "/ready": ("ready", "Whether requests can run", "Status"),
        "/version": ("version", "The server's version", "Version"),
    }
    metrics = {"text/plain": {"schema": {"type": "string"}}}
    metrics_operation = {**_get("metrics", "Metrics for Prometheus", metrics), **_open(settings.loopback)}
    if not settings.loopback:
        metrics_operation["responses"]["401"] = _error("401")
    return {
        **{path: {"post": _post(*description)} for path, description in post.items()},
        "/v1/models": {"get": _get("listModels", "The models served", _json("ModelList"), "401")},
        "/v1/models/{model}": {
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": _get("retrieveModel", "One model; its name may hold a slash", _json("Model"), "401", "404"),
        },
        **{
            path: {"get": {**_get(name, summary, _json(schema), "503"), **_open()}}
            for path, (name, summary, schema) in probes.items()
        },
        "/metrics": {"get": metrics_operation},
        "/openapi.json": {
            "get": _get("openapi", "This document", {"application/json": {"schema": {"type": "object"}}}, "401")
        },
    }


_ERRORS = {
    "400": "the request is at fault; `param` names the field",
    "401": "no key, or a wrong one",
    "404": "no such model",
    "408": "the body stopped coming",
    "413": "the body is too large",
    "415": "not application/json, or compressed",
    "429": "too many requests wait: see retry-after",
    "500": "a fault of the server's; the request fails alone",
    "503": "starting, stopping, or out of memory: see retry-after",
    "504": "the request's deadline passed",
}


def _post(name: str, summary: str, request: str, response: str, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = _json(response)
    body = {"schema": reference(request), "example": EXAMPLES[request]}
    if streams:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no schema for the events of a stream
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": {"description": "the answer, or a stream of it" if streams else "the answer", "content": content},
            **{status: _error(status) for status in _ERRORS},
        },
    }


def _get(name: str, summary: str, content: dict[str, Any], *errors: str) -> dict[str, Any]:
    responses = {"200": {"description": "found", "content": content}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": responses | {status: _error(status) for status in errors},
    }


def _open(is_open: bool = True) -> dict[str, Any]:
    return {"security": []} if is_open else {}


def _json(schema: str) -> dict[str, Schema]:
    return {"application/json": {"schema": reference(schema)}}


def _error(status: str) -> dict[str, Any]:
    headers = {"x-request-id": {"description": "names the request in the server's log", "schema": {"type": "string"}}}
    if status in ("429", "503"):
        headers["retry-after"] = {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}
    return {"description": _ERRORS[status], "headers": headers, "content": _json("Error")}
