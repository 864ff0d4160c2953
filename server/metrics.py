"""GET /metrics: the engine's statistics and the server's own, for Prometheus.

Names follow vLLM's with another prefix, so that its dashboards are soon adapted. All labels come from closed sets:
nothing that a client sends becomes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mdinfer.result import Result
from mdinfer.server.call import Call
from mdinfer.server.errors import ApiError
from mdinfer.server.protocols import EngineStats

ROUTES = (
    "/v1/chat/completions",
    "/v1/query",
    "/v1/caption",
    "/v1/detect",
    "/v1/point",
    "/v1/models",
    "/health",
    "/ready",
    "/metrics",
    "/version",
    "/openapi.json",
)
STATUSES = (200, 400, 401, 404, 405, 408, 413, 415, 429, 499, 500, 503, 504)
ERRORS = (
    *("invalid_request", "invalid_image", "context_length_exceeded", "unsupported_parameter", "invalid_api_key"),
    *("not_found", "model_not_found", "method_not_allowed", "unsupported_media_type", "unsupported_encoding"),
    *("request_too_large", "body_timeout", "queue_full", "timeout", "out_of_memory", "internal_error", "cancelled"),
    *("starting", "shutting_down", "load_failed", "engine_dead", "client_left"),
)
OTHER = "other"

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
TOKENS = (1, 4, 16, 64, 256, 768, 1024, 2048, 4096, 8192)

_DURATIONS: dict[str, tuple[str, Callable[[Result], float]]] = {
    "time_to_first_token": ("Seconds from a request's submission to its first token", lambda r: r.metrics.ttft_s),
    "e2e_request_latency": ("Seconds from a request's submission to its end", lambda r: r.metrics.total_s),
    "request_queue_time": ("Seconds that a request waited for admission", lambda r: r.metrics.queue_s),
    "request_prefill_time": ("Seconds of a request's vision and prefill", lambda r: r.metrics.prefill_s),
    "request_decode_time": ("Seconds from a request's first token to its last", lambda r: r.metrics.decode_s),
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts taken in",
    "generation_tokens": "Tokens generated",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache",
    "num_preemptions": "Requests that had to give up their pages and begin again",
    "images_encoded": "Images that ran through the vision tower",
    "engine_steps": "Steps of the engine",
}


class ServerMetrics:
    """Counts exchanges; `expose` adds what `statistics` says of the engine, None while there is none."""

    def __init__(self, statistics: Callable[[], EngineStats | None]) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(statistics))
        self._exchanges = Counter(
            "mdinfer_http_requests", "HTTP exchanges", ["route", "status"], registry=registry
        )  # fmt: skip
        self._errors = Counter("mdinfer_request_errors", "Failed exchanges", ["type"], registry=registry)
        self._finished = Counter("mdinfer_request_success", "Answers", ["finished_reason"], registry=registry)
        for kind in ERRORS:
            self._errors.labels(kind)
        self._durations = {
            name: Histogram(f"mdinfer_{name}_seconds", text, buckets=SECONDS, registry=registry)
            for name, (text, _) in _DURATIONS.items()
        }
        self._per_token = Histogram(
            "mdinfer_time_per_output_token_seconds",
            "Seconds of decoding for each token after the first, the mean of a request",
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        self._prompts = Histogram(
            "mdinfer_request_prompt_tokens", "Tokens of a prompt", buckets=TOKENS, registry=registry
        )
        self._answers = Histogram(
            "mdinfer_request_generation_tokens", "Tokens of an answer", buckets=TOKENS, registry=registry
        )

    def observe(self, path: str, status: int, call: Call) -> None:
        self._exchanges.labels(route_label(path), str(status) if status in STATUSES else OTHER).inc()
        if call.client_left:
            self._errors.labels("client_left").inc()
        elif call.failure is not None:
            self._errors.labels(error_label(call.failure)).inc()
        for result in call.results:
            self._observe_result(result)

    def _observe_result(self, result: Result) -> None:
        self._finished.labels(result.finish_reason).inc()
        for name, (_, seconds) in _DURATIONS.items():
            self._durations[name].observe(seconds(result))
        tokens = result.usage.completion_tokens
        if tokens > 1:
            self._per_token.observe(result.metrics.decode_s / (tokens - 1))
        self._prompts.observe(result.usage.prompt_tokens)
        self._answers.observe(tokens)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The text of all metrics, and its content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type


def route_label(path: str) -> str:
    if path in ROUTES:
        return path
    return "/v1/models" if path.startswith("/v1/models/") else OTHER


def error_label(error: ApiError) -> str:
    code = error.code or ("internal_error" if error.status >= 500 else "invalid_request")
    return code if code in ERRORS else OTHER


class _EngineCollector(Collector):
    def __init__(self, statistics: Callable[[], EngineStats | None]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        if (stats := self._statistics()) is None:
            return
        held = stats.pages_total - stats.pages_free - stats.pages_cached
        gauges = {
            "num_requests_running": ("Requests at work", stats.running),
            "num_requests_waiting": ("Requests that wait for admission", stats.waiting),
            "kv_cache_usage_ratio": ("Share of the KV cache that requests hold", held / max(1, stats.pages_total)),
            "kv_cache_pages": ("Pages of the KV cache", stats.pages_total),
            "kv_cache_evictable_pages": ("Pages kept for reuse, given up when needed", stats.pages_cached),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"mdinfer_{name}", text, value=value)
        counts = {
            "prompt_tokens": stats.prompt_tokens,
            "generation_tokens": stats.generation_tokens,
            "prefix_cache_queries": stats.prefix_queries,
            "prefix_cache_hits": stats.prefix_hits,
            "num_preemptions": stats.preemptions,
            "images_encoded": stats.images_encoded,
            "engine_steps": stats.steps,
        }
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"mdinfer_{name}", text, value=counts[name])
