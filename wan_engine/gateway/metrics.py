"""Exports the metrics for Prometheus, from a registry per gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wan_engine.gateway.job import Job

_STAGE_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
_ANSWER_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 120, 300)


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._queue = Gauge("wan_queue_length", "Jobs that wait", registry=registry)
        self._ready = Gauge("wan_backend_ready", "1 while jobs can be rendered", registry=registry)
        self._running = Gauge("wan_jobs_running", "Running jobs", registry=registry)
        self._accepted = Counter("wan_jobs_accepted", "Jobs stored", ["door"], registry=registry)
        self._ended = Counter(
            "wan_jobs_ended", "Ended jobs by final state", ["door", "state"], registry=registry
        )
        self._failures = Counter(
            "wan_failures", "Failed jobs by class", ["door", "code"], registry=registry
        )
        self._stages = Histogram(
            "wan_stage_seconds",
            "Seconds of a job in a stage",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self._engine_starts = Counter(
            "wan_engine_starts", "Starts of the engine's process", registry=registry
        )
        self._webhooks = Counter(
            "wan_webhooks", "Webhooks by outcome", ["outcome"], registry=registry
        )
        self._answers = Histogram(
            "wan_answer_seconds",
            "Seconds until an answer began",
            ["door", "method", "status"],
            buckets=_ANSWER_BUCKETS,
            registry=registry,
        )

    def queue_length(self, read: Callable[[], int]) -> None:
        self._queue.set_function(read)

    def backend_ready(self, read: Callable[[], bool]) -> None:
        self._ready.set_function(read)

    def running(self, read: Callable[[], int]) -> None:
        self._running.set_function(read)

    def accepted(self, job: Job) -> None:
        self._accepted.labels(job.door).inc()

    def ended(self, job: Job) -> None:
        self._ended.labels(job.door, job.state).inc()
        if job.state in ("failed", "expired"):
            self._failures.labels(job.door, job.error_code or "unknown").inc()
        if job.delay_ms is not None:
            self._stages.labels("waiting").observe(job.delay_ms / 1000)

    def stages(self, seconds: Mapping[str, float]) -> None:
        for stage, spent in seconds.items():
            self._stages.labels(stage).observe(spent)

    def engine_started(self) -> None:
        self._engine_starts.inc()

    def webhook(self, outcome: str) -> None:
        self._webhooks.labels(outcome).inc()

    def answered(self, door: str, method: str, status: int, seconds: float) -> None:
        self._answers.labels(door, method, str(status)).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
