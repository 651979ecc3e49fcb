from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from curve_storage.errors import InvalidArgument, Unavailable
from curve_storage.telemetry import logs, metrics
from curve_storage.telemetry.http import HttpEndpoint


async def fetch(port: int, request: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def test_endpoint() -> None:
    reasons: dict[str, str | None] = {"health": None, "ready": "no leader yet"}
    metrics.counter("curve_test_things_total", "Things").inc(3)
    endpoint = HttpEndpoint("127.0.0.1", 0, metrics.registry(), lambda: reasons["health"], lambda: reasons["ready"])
    port = await endpoint.start()
    try:
        status, body = await fetch(port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(body)}
        assert families["curve_test_things"].samples[0].value == 3
        assert "process_resident_memory_bytes" in families
        assert await fetch(port, "GET /healthz HTTP/1.1\r\n\r\n") == (200, "ok\n")
        assert await fetch(port, "GET /readyz?x=1 HTTP/1.1\r\n\r\n") == (503, "no leader yet\n")
        reasons["health"], reasons["ready"] = "disk failed", None
        assert await fetch(port, "GET /healthz HTTP/1.1\r\n\r\n") == (503, "disk failed\n")
        assert await fetch(port, "GET /readyz HTTP/1.0\r\n\r\n") == (200, "ok\n")
        assert (await fetch(port, "HEAD /metrics HTTP/1.1\r\n\r\n"))[1] == ""
        assert (await fetch(port, "GET /nothing HTTP/1.1\r\n\r\n"))[0] == 404
        assert (await fetch(port, "POST /metrics HTTP/1.1\r\n\r\n"))[0] == 405
        assert (await fetch(port, "rubbish\r\n\r\n"))[0] == 400
        assert (await fetch(port, "GET /" + "x" * 20000 + " HTTP/1.1\r\n\r\n"))[0] == 431
        _reader, silent = await asyncio.open_connection("127.0.0.1", port)
        silent.write(b"GET /met")
        silent.close()
        with pytest.raises(Unavailable, match="cannot listen"):
            await HttpEndpoint("127.0.0.1", port, metrics.registry(), lambda: None, lambda: None).start()
    finally:
        await endpoint.stop()


async def test_a_failing_probe_is_a_500() -> None:
    def broken() -> str | None:
        raise RuntimeError("probe broke")

    endpoint = HttpEndpoint("127.0.0.1", 0, metrics.registry(), broken, lambda: None)
    port = await endpoint.start()
    status, body = await fetch(port, "GET /healthz HTTP/1.1\r\n\r\n")
    assert status == 500 and "probe broke" in body
    await endpoint.stop()


def test_metrics_are_shared_by_name() -> None:
    first = metrics.histogram("curve_test_seconds", "Time", ("op",))
    assert metrics.histogram("curve_test_seconds", "Time", ("op",)) is first
    first.labels("read").observe(0.003)
    text = generate_latest(metrics.registry()).decode()
    assert 'curve_test_seconds_bucket{le="0.005",op="read"} 1.0' in text
    assert 'curve_test_seconds_bucket{le="0.0025",op="read"} 0.0' in text
    with pytest.raises(InvalidArgument, match="another kind"):
        metrics.counter("curve_test_seconds", "Time")
    for name in ("requests_total", "curve_", "curve_Bad", "curve_a-b"):
        with pytest.raises(InvalidArgument, match="not a metric name"):
            metrics.gauge(name, "x")


def lines(stream: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_log_lines() -> None:
    stream = io.StringIO()
    logs.configure("info", "mds", "node-1", stream)
    log = logs.get("mds.server")
    log.debug("not shown")
    with logs.request_context("r1"):
        log.info("volume created", path="/a", token=b"abc", keyring_file="k")
    log.info("after")
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("failed")
    logging.getLogger("some.library").warning("its %s", "words")
    logging.getLogger("some.library").info("too chatty")
    first, second, third, fourth = lines(stream)
    assert {key: first[key] for key in ("level", "event", "component", "node", "request_id", "source", "path")} == {
        "level": "info",
        "event": "volume created",
        "component": "mds",
        "node": "node-1",
        "request_id": "r1",
        "source": "mds.server",
        "path": "/a",
    }
    assert first["token"] == first["keyring_file"] == "(hidden)" and first["ts"].endswith("Z")
    assert "request_id" not in second
    assert "ValueError: bad" in third["exception"] and third["level"] == "error"
    assert (fourth["event"], fourth["level"], fourth["component"]) == ("its words", "warning", "mds")
    with pytest.raises(InvalidArgument, match="not a log level"):
        logs.configure("loud")


async def test_request_contexts_do_not_mix() -> None:
    stream = io.StringIO()
    logs.configure("info", "mds", "", stream)
    log = logs.get("x")

    async def work(name: str) -> None:
        with logs.request_context(name):
            for _ in range(3):
                await asyncio.sleep(0)
                log.info("step", of=name)

    await asyncio.gather(*[work(f"r{number}") for number in range(5)])
    found = lines(stream)
    assert len(found) == 15 and all(line["request_id"] == line["of"] for line in found)
