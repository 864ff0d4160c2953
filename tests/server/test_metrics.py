from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mdinfer.errors import ImageError, RequestFailedError
from mdinfer.server import metrics
from mdinfer.server.errors import ApiError
from tests.server.fake_engine import FakeEngine, Script
from tests.server.live_server import Live, live_server

Samples = dict[tuple[str, ...], float]


def samples(live: Live) -> Samples:
    """(name, label values ...) -> value of all that is exposed."""
    response = live.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_the_engines_statistics(live: Live, fake: FakeEngine) -> None:
    fake.script = Script(pause=0.05)
    found = samples(live)
    assert found["mdinfer_num_requests_running",] == 0
    assert found["mdinfer_num_requests_waiting",] == 2
    assert found["mdinfer_kv_cache_usage_ratio",] == 0.2
    assert found["mdinfer_prompt_tokens_total",] == 44
    assert found["mdinfer_generation_tokens_total",] == 20
    assert found["mdinfer_prefix_cache_queries_total",] == 40
    assert found["mdinfer_prefix_cache_hits_total",] == 25
    assert found["mdinfer_images_encoded_total",] == 3
    assert found["mdinfer_num_preemptions_total",] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_counted_and_timed(stream: bool) -> None:
    with live_server(FakeEngine()) as live:
        assert live.chat(n=2, stream=stream).status_code == 200
        assert live.http.post("/v1/query", json={"question": "?"}).status_code == 200
        found = samples(live)
    assert found["mdinfer_http_requests_total", "/v1/chat/completions", "200"] == 1
    assert found["mdinfer_request_success_total", "stop"] == 3
    for name in ("time_to_first_token", "e2e_request_latency", "request_decode_time"):
        assert found[f"mdinfer_{name}_seconds_count",] == 3
    assert found["mdinfer_time_to_first_token_seconds_sum",] == pytest.approx(3 * 0.025)
    assert found["mdinfer_time_per_output_token_seconds_sum",] == pytest.approx(3 * 0.5 / 4)
    assert found["mdinfer_request_generation_tokens_sum",] == 15


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_counted_by_type(stream: bool) -> None:
    engine = FakeEngine()
    with live_server(engine) as live:
        for refusal in (ImageError("bad"), RequestFailedError("oops")):
            engine.script = Script(refusal=refusal)
            live.chat(stream=stream)
        engine.script = Script(fault=RequestFailedError("oops"), fault_at=3)
        live.chat(stream=stream)
        live.chat(tools=[1])
        live.http.get("/nope")
        live.http.get("/v1/models/nope")
        found = samples(live)
    counted = {labels[0]: value for (name, *labels), value in found.items() if name == "mdinfer_request_errors_total"}
    assert counted == dict.fromkeys(metrics.ERRORS, 0) | {
        "invalid_image": 1,
        "internal_error": 2,
        "unsupported_parameter": 1,
        "not_found": 1,
        "model_not_found": 1,
    }


def test_labels_come_from_closed_sets() -> None:
    """Paths and methods of a client's invention make no new series."""
    with live_server(FakeEngine()) as live:
        for i in range(20):
            live.http.request(f"M{i}", f"/made/up/{i}")
            live.http.get(f"/v1/models/made-up-{i}")
            live.http.get(f"/metrics?x={i}")
        found = samples(live)
    routes = {labels[0] for (name, *labels) in found if name == "mdinfer_http_requests_total"}
    assert routes == {"other", "/v1/models", "/metrics"}
    assert metrics.error_label(ApiError(418, "tea", code="teapot")) == "other"


def test_open_metrics_for_who_asks(live: Live) -> None:
    headers = {"accept": "application/openmetrics-text; version=1.0.0"}
    response = live.http.get("/metrics", headers=headers)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


@pytest.mark.parametrize("version", ["abc", "1.x", "9" * 5000, ";escaping=none"])
def test_versions_of_open_metrics_that_do_not_exist(live: Live, version: str) -> None:
    headers = {"accept": f"application/openmetrics-text; version={version}"}
    response = live.http.get("/metrics", headers=headers)
    assert response.status_code == 200
    assert "mdinfer_num_requests_running" in response.text


def test_two_apps_count_apart() -> None:
    with live_server(FakeEngine()) as one, live_server(FakeEngine()) as other:
        one.chat()
        assert samples(one)["mdinfer_request_success_total", "stop"] == 1
        assert ("mdinfer_request_success_total", "stop") not in samples(other)
