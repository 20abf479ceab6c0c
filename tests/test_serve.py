"""`scmmgpt serve`: the handler's schema over HTTP, for many people at once."""

import asyncio
import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")
import httpx
from docs_blocks import blocks_of, commands, write_files
from fastapi.testclient import TestClient
from tiny_models import GENES, as_dicts, make_repository, tiny_cells

import scmmgpt.hub_cards.serve
from scmmgpt.errors import UserError
from scmmgpt.hub_cards.handler import EndpointHandler
from scmmgpt.hub_cards.schema_scmmgpt import MAX_BODY_BYTES, BadRequest, DescribeRequest
from scmmgpt.hub_cards.serve import (
    MAX_STREAMS,
    MAX_WAITING,
    Batcher,
    Busy,
    ClientLeft,
    Service,
    create_app,
    while_there,
)

LABELS = ["B cell", "monocyte"]
PAGE = Path(__file__).parents[1] / "docs" / "howto" / "serve.md"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository") / "model")


@pytest.fixture(scope="module")
def handler(repository):
    return EndpointHandler(str(repository), device="cpu")


@pytest.fixture(scope="module")
def client(handler):
    with TestClient(create_app(handler, "tiny")) as client:
        yield client


def test_health_says_what_is_loaded(client):
    health = client.get("/health").json()

    assert (health["status"], health["model"], health["trained"]) == ("ok", "tiny", False)


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        pytest.param("/annotate", {"cells": as_dicts(tiny_cells(2)), "labels": LABELS}, "calls", id="annotate"),
        pytest.param("/embed", {"cells": as_dicts(tiny_cells(2))}, "embeddings", id="embed"),
        pytest.param(
            "/describe", {"cells": as_dicts(tiny_cells(2)), "max_new_tokens": 4}, "descriptions", id="describe"
        ),
        pytest.param("/search", {"cells": as_dicts(tiny_cells(2)), "text": "B cells"}, "hits", id="search"),
        pytest.param("/generate", {"text": "a B cell", "num_cells": 2}, "cells", id="generate"),
    ],
)
def test_every_task_has_its_path(client, path, body, key):
    answer = client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    assert len(answer.json()[key]) >= 2


def test_the_form_of_an_inference_endpoint_is_taken_too(client):
    request = {"task": "embed", "cells": as_dicts(tiny_cells(2))}

    one = client.post("/", json={"inputs": request}).json()
    two = client.post("/", json={"inputs": [request, request]}).json()

    assert two == [one, one]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "annotate"},
        {"inputs": []},
        {"inputs": {"task": "train"}},
        {"inputs": {"task": "embed", "cells": []}, "parameters": [1]},
        {"task": "search", "cells": [{"CD3D": 1}], "text": " "},
        {"inputs": [{"task": "embed", "cells": [{"CD3D": 1}]}] * 33},
        {"inputs": {"task": "annotate", "cells": [dict.fromkeys(GENES, 1)], "labels": ["a\0b"]}},
    ],
    ids=lambda body: str(body)[:40],
)
def test_a_body_means_the_same_to_the_server_and_to_an_inference_endpoint(client, handler, body):
    answer = client.post("/", json=body)

    try:
        expected = (200, handler(body))
    except BadRequest as reason:
        expected = (400, {"error": str(reason)})
    assert (answer.status_code, answer.json()) == expected


def test_the_request_that_the_page_shows_is_answered(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(PAGE)
    exec(compile(next(block.code for block in blocks if "request.json" in block.code), str(PAGE), "exec"), {})
    shown = [command for block in blocks if block.language == "sh" for command in commands(block.code)]
    address, *_, body = next(words[2:] for words in shown if words[0] == "curl")

    with TestClient(create_app(EndpointHandler(str(scmmgpt.EMBEDDED_MODEL), device="cpu"))) as client:
        answer = post(client, Path(body.removeprefix("@")).read_bytes(), address.removeprefix("localhost:8000"))

    assert answer.status_code == 200, answer.text
    assert [call["cell_type"] for call in answer.json()["calls"]] == ["B cell"] * 3


def test_text_is_streamed_as_server_sent_events(client):
    body = {"cells": as_dicts(tiny_cells(1)), "max_new_tokens": 8}

    with client.stream("POST", "/describe/stream", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "[DONE]"
    text = "".join(json.loads(line)["text"] for line in lines[:-1]).strip()
    assert text == client.post("/describe", json=body).json()["descriptions"][0]


def test_the_openapi_page_documents_every_task_and_refusal(client):
    paths = client.get("/openapi.json").json()["paths"]

    assert {"/annotate", "/embed", "/describe", "/search", "/generate", "/health"} <= set(paths)
    assert {"400", "413", "422"} <= set(paths["/annotate"]["post"]["responses"])
    assert client.get("/docs").status_code == 200


def post(client, content: bytes, path: str = "/annotate", kind: str = "application/json"):
    return client.post(path, content=content, headers={"content-type": kind})


BAD_BODIES = [
    pytest.param(b"", 422, id="nothing"),
    pytest.param(b"{", 422, id="broken JSON"),
    pytest.param(b"\xff\xfe", 422, id="not UTF-8"),
    pytest.param(b"[" * 100_000, 400, id="nested a hundred thousand deep"),
    pytest.param(b'{"cells": ' + b"9" * 10_000 + b"}", 400, id="a number of ten thousand digits"),
    pytest.param(b'{"cells": [{"CD3D": NaN}]}', 422, id="NaN"),
    pytest.param(b'{"cells": [{"CD3D": 1e400}]}', 422, id="beyond floating point"),
    pytest.param(b'{"cells": [{"CD3D": 1}], "labels": ["a", "a"]}', 422, id="a label twice"),
    pytest.param(b'{"cells": [{"NOGENE": 1}], "labels": ["a"]}', 400, id="unknown genes"),
    pytest.param(b'{"cells": [{"CD3D": 1}], "model": "other"}', 422, id="a field too many"),
    pytest.param(b'{"cells": {"h5ad": "AAAAAAAAAAAA"}}', 400, id="an h5ad that is none"),
    pytest.param(b" " * (MAX_BODY_BYTES + 1), 413, id="larger than allowed"),
]


@pytest.mark.parametrize(("content", "status"), BAD_BODIES)
def test_a_bad_body_gets_a_4xx_with_its_reason(client, content, status):
    answer = post(client, content)

    assert answer.status_code == status, answer.text
    reason = answer.json()["error"] if status != 413 else answer.text
    assert 0 < len(reason) < 1200


def test_a_body_that_hides_its_length_is_cut_off(client):
    def pieces():
        for _ in range(MAX_BODY_BYTES // 2**20 + 2):
            yield b" " * 2**20

    answer = client.post("/annotate", content=pieces(), headers={"content-type": "application/json"})

    assert answer.status_code == 413


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/../../etc/passwd", 404)])
def test_an_unknown_path_is_a_404(client, path, status):
    assert client.get(path).status_code == status


def test_requests_at_the_same_time_are_answered_together_and_each_gets_its_own():
    sizes = []

    def answer(requests):
        sizes.append(len(requests))
        time.sleep(0.05)
        return [BadRequest("no") if request == 3 else request * 10 for request in requests]

    batcher = Batcher(answer)
    batcher.start()
    futures = [batcher.submit(number) for number in range(8)]
    batcher.stop()

    assert [future.result() for number, future in enumerate(futures) if number != 3] == [0, 10, 20, 40, 50, 60, 70]
    with pytest.raises(BadRequest):
        futures[3].result()
    assert len(sizes) < 4


def test_a_fault_in_one_batch_does_not_end_the_service():
    def answer(requests):
        if requests == ["bad"]:
            raise RuntimeError("bug")
        return requests

    batcher = Batcher(answer)
    batcher.start()
    bad = batcher.submit("bad")
    with pytest.raises(RuntimeError):
        bad.result(timeout=5)

    good = batcher.submit("good")

    assert good.result(timeout=5) == "good"
    batcher.stop()


def test_more_than_can_wait_is_turned_away():
    batcher = Batcher(lambda requests: requests)  # not started: nothing is taken from the queue

    for number in range(MAX_WAITING):
        batcher.submit(number)

    with pytest.raises(Busy):
        batcher.submit("one more")


def test_who_leaves_gives_the_place_and_the_memory_back():
    class Request:
        pass

    batcher = Batcher(lambda requests: requests)
    futures = [batcher.submit(Request()) for _ in range(MAX_WAITING)]
    left = weakref.ref(batcher.waiting.queue[7][0])

    assert futures[7].cancel()
    gc.collect()

    assert left() is None
    assert batcher.submit("of who comes after").cancel()
    assert batcher.waiting.qsize() == MAX_WAITING - 1


def test_nobody_works_for_a_client_that_left():
    answered = []
    batcher = Batcher(lambda requests: [answered.append(request) for request in requests])

    async def left():
        return {"type": "http.disconnect"}

    async def stays():
        await asyncio.Event().wait()

    async def visits():
        with pytest.raises(ClientLeft):
            await while_there(SimpleNamespace(receive=left), asyncio.wrap_future(batcher.submit("of who left")))
        batcher.start()
        time.sleep(0.1)  # the loop stands still: what was not given up by now would be answered
        await while_there(SimpleNamespace(receive=stays), asyncio.wrap_future(batcher.submit("of who stays")))
        batcher.stop()

    asyncio.run(visits())

    assert answered == ["of who stays"]


def as_service(answer) -> Service:
    return Service(SimpleNamespace(answer=answer), "stub")


def test_parts_of_a_body_that_was_refused_give_up_their_places():
    go_on = threading.Event()

    def answer(requests):
        if requests[0].task == "annotate":
            return [BadRequest("no")]
        go_on.wait(5)
        return [{} for _ in requests]

    service, cells = as_service(answer), as_dicts(tiny_cells(1))
    parts = [{"task": "describe", "cells": cells}] * 8 + [{"task": "annotate", "cells": cells, "labels": LABELS}]

    async def ask() -> int:
        async with service.lifespan(None):
            with pytest.raises(BadRequest):
                await service.answer_body({"inputs": parts})
            waiting = service.slow.waiting.qsize()
            go_on.set()
        return waiting

    assert asyncio.run(ask()) == 0


def test_a_text_goes_out_when_it_is_written_and_waits_for_no_other():
    together = []
    service = as_service(lambda requests: together.append(len(requests)) or [{} for _ in requests])
    request = DescribeRequest(cells=as_dicts(tiny_cells(1)))

    async def ask() -> None:
        async with service.lifespan(None):
            await asyncio.gather(*(service.answer(request) for _ in range(6)))

    asyncio.run(ask())

    assert together == [1] * 6


def test_the_example_of_the_openapi_page_is_answered(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    example = schemas["AnnotateRequest"]["properties"]["cells"]["examples"][0]

    with TestClient(create_app(EndpointHandler(str(scmmgpt.EMBEDDED_MODEL), device="cpu"))) as client:
        calls = client.post("/annotate", json={"cells": example, "labels": LABELS}).json()["calls"]

    assert [call["cell_type"] for call in calls] == LABELS


def test_more_streams_than_allowed_are_turned_away_and_each_gives_its_place_back(repository):
    body = {"cells": as_dicts(tiny_cells(1)), "max_new_tokens": 4}
    service = Service(EndpointHandler(str(repository), device="cpu"), "tiny")
    request = DescribeRequest(**body)

    begun = [service.stream(request) for _ in range(MAX_STREAMS)]
    with pytest.raises(Busy):
        service.stream(request)
    list(begun.pop())  # one is read to its end, the others are dropped unread
    begun.clear()

    assert list(service.stream(request))[-1] == "data: [DONE]\n\n"
    assert service.streams._value == MAX_STREAMS


def test_an_answer_that_takes_too_long_is_given_up_with_a_reason(repository, monkeypatch):
    monkeypatch.setattr(scmmgpt.hub_cards.serve, "SECONDS_TO_ANSWER", 0.05)
    handler = EndpointHandler(str(repository), device="cpu")
    monkeypatch.setattr(handler, "answer", lambda requests: time.sleep(0.5) or requests)

    with TestClient(create_app(handler)) as client:
        answer = client.post("/embed", json={"cells": as_dicts(tiny_cells(1))})

    assert answer.status_code == 503
    assert "try again" in answer.json()["error"]


def test_a_stop_signal_lets_running_requests_finish(repository):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"from scmmgpt.hub_cards.serve import serve; serve({str(repository)!r}, port={port}, device='cpu')"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes, text=True) as server:
        try:
            assert f"http://127.0.0.1:{port}" in server.stdout.readline(), server.stderr.read()
            wait_until_up(f"http://127.0.0.1:{port}/health", server)
            body = {"cells": as_dicts(tiny_cells(1)), "max_new_tokens": 200}
            with httpx.stream("POST", f"http://127.0.0.1:{port}/describe/stream", json=body, timeout=300) as answer:
                server.send_signal(signal.SIGTERM)
                lines = [line for line in answer.iter_lines() if line]
            assert lines[-1] == "data: [DONE]"
            assert server.wait(timeout=60) in (0, -signal.SIGTERM)
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_port_that_does_not_exist_is_refused_before_a_model_is_loaded(port):
    with pytest.raises(UserError, match=f"between 1 and 65535, got {port}"):
        scmmgpt.hub_cards.serve.serve("no model", port=port)


def wait_until_up(url: str, server: subprocess.Popen) -> None:
    for _ in range(3000):
        try:
            httpx.get(url, timeout=1)
            return
        except httpx.TransportError:
            assert server.poll() is None, server.stderr.read()
            time.sleep(0.1)
    raise TimeoutError(url)
