"""The endpoint's schema over HTTP, on your own machine: `scmmgpt serve`, with an OpenAPI page at /docs.

Requests that come at the same time go through the model together. Language and generation have a queue of their own,
so that a long text never holds up an annotation.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Any

from scmmgpt.console import say
from scmmgpt.errors import UserError, require

from .schema_scmmgpt import (
    MAX_BODY_BYTES,
    MAX_REQUESTS,
    AnnotateRequest,
    AnnotateResponse,
    BadRequest,
    DescribeRequest,
    DescribeResponse,
    EmbedRequest,
    EmbedResponse,
    GenerateRequest,
    GenerateResponse,
    Refusal,
    SearchRequest,
    SearchResponse,
    explain,
    read_body,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .handler import EndpointHandler

MAX_WAITING = 256
SECONDS_TO_GATHER = 0.004
SECONDS_TO_FINISH = 30
SECONDS_TO_ANSWER = 300
MAX_STREAMS = 4
MAX_CONNECTIONS = 512
MAX_PORT = 65535
_SLOW_TASKS = ("describe", "generate")


class ClientLeft(Exception):
    """Nobody waits for this answer any more."""


class Busy(Exception):
    """More requests wait than can be answered soon, or one takes longer than anybody waits."""


@dataclass
class Batcher:
    """One thread that answers whatever has gathered in its queue, at most so many together.

    `answer` gives each request its answer, or the exception that explains its absence.
    """

    answer: Callable[[list[Any]], list[Any]]
    most: int = MAX_REQUESTS
    waiting: queue.Queue = field(default_factory=lambda: queue.Queue(MAX_WAITING))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer what is waiting, then end."""
        self.waiting.put(None)
        self._thread.join(SECONDS_TO_FINISH)

    def submit(self, request: Any) -> Future:
        future: Future = Future()
        try:
            self.waiting.put_nowait((request, future))
        except queue.Full:
            raise Busy from None
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: Future) -> None:
        """What nobody waits for any more takes no place in the queue, and no memory."""
        with self.waiting.mutex:
            for place, entry in enumerate(self.waiting.queue):
                if entry is not None and entry[1] is future:
                    del self.waiting.queue[place]
                    break

    def _run(self) -> None:
        while (first := self.waiting.get()) is not None:
            batch = [first, *self._gather()]
            self._answer([entry for entry in batch if entry is not None])
            if None in batch:
                return

    def _gather(self) -> list[Any]:
        """Requests that arrive within a few milliseconds of the first."""
        gathered: list[Any] = []
        end = monotonic() + SECONDS_TO_GATHER
        while len(gathered) + 1 < self.most and None not in gathered:
            try:
                gathered.append(self.waiting.get(timeout=max(0.0, end - monotonic())))
            except queue.Empty:
                break
        return gathered

    def _answer(self, batch: list[tuple[Any, Future]]) -> None:
        running = [(request, future) for request, future in batch if future.set_running_or_notify_cancel()]
        try:
            answers = self.answer([request for request, _ in running]) if running else []
        except Exception as error:  # one faulty batch must not end the thread that serves all
            answers = [error] * len(running)
        for (_, future), answer in zip(running, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


@dataclass
class Service:
    """A handler and its two queues."""

    handler: EndpointHandler
    name: str

    def __post_init__(self) -> None:
        # Texts are written one after the other: whoever waits longest has the answer first, not with the last of a batch.
        self.fast, self.slow = Batcher(self.handler.answer), Batcher(self.handler.answer, most=1)
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        self.fast.start()
        self.slow.start()
        yield
        for batcher in (self.fast, self.slow):
            await asyncio.to_thread(batcher.stop)

    async def answer(self, request: Any) -> Any:
        batcher = self.slow if request.task in _SLOW_TASKS else self.fast
        try:
            async with asyncio.timeout(SECONDS_TO_ANSWER):
                return await asyncio.wrap_future(batcher.submit(request))
        except TimeoutError:
            raise Busy from None

    def stream(self, request: DescribeRequest) -> Iterator[str]:
        """Server-sent events of a description as it is written; only so many at a time."""
        events = self._events(self.handler.stream_description(request))
        # Begun here, it gives its place back however it ends, even if nobody ever reads on.
        return chain([next(events)], events)

    def _events(self, pieces: Iterator[str]) -> Iterator[str]:
        if not self.streams.acquire(blocking=False):
            raise Busy
        try:
            for piece in pieces:
                yield f"data: {json.dumps({'text': piece})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.streams.release()

    async def answer_body(self, body: dict[str, Any]) -> Any:
        """A body in the form of an inference endpoint: {"inputs": one request or several, "parameters": ...}."""
        requests, is_list = read_body(body)
        working = [asyncio.ensure_future(self.answer(request)) for request in requests]
        try:
            answers = await asyncio.gather(*working)
        finally:  # if one was refused, nobody waits for the others
            for answer in working:
                answer.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        return answers if is_list else answers[0]

    def health(self) -> dict[str, Any]:
        return {
            "status": "ok",
            "model": self.name,
            "trained": bool(self.handler.training_summary),
            "device": str(self.handler.device),
            "waiting": self.fast.waiting.qsize() + self.slow.waiting.qsize(),
        }


async def while_there(http: Any, work: Awaitable[Any]) -> Any:
    """What `work` gives, unless its client leaves before: then it is not begun, if it still waits."""

    async def leaves() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait({working})  # until its place in the queue is given up
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def create_app(handler: EndpointHandler, name: str = "scmmgpt") -> FastAPI:
    """The web application around a loaded model."""
    require("fastapi")
    from fastapi import FastAPI, Request
    from fastapi.responses import RedirectResponse, StreamingResponse

    from scmmgpt import __version__

    service = Service(handler, name)
    app = FastAPI(
        title="scmmgpt",
        version=__version__,
        summary="Single cells and language: annotate, embed, describe, search and generate single cells.",
        lifespan=service.lifespan,
        max_body_size=MAX_BODY_BYTES,
    )
    _explain_errors(app)
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in (400, 422, 503)}
    too_large = f"The body is larger than {MAX_BODY_BYTES} bytes."
    refusals[413] = {"description": too_large, "content": {"text/plain": {}}}  # refused before a route is chosen

    def add(path: str, kind: type, answer_kind: type) -> None:
        async def answer(request: Any, http: Any) -> Any:
            return await while_there(http, service.answer(request))

        answer.__annotations__ |= {"request": kind, "http": Request}
        name = kind.__name__.removesuffix("Request").lower()
        app.post(path, response_model=answer_kind, responses=refusals, name=name, description=kind.__doc__)(answer)

    add("/annotate", AnnotateRequest, AnnotateResponse)
    add("/embed", EmbedRequest, EmbedResponse)
    add("/describe", DescribeRequest, DescribeResponse)
    add("/search", SearchRequest, SearchResponse)
    add("/generate", GenerateRequest, GenerateResponse)

    @app.post("/describe/stream", responses=refusals, response_model=None)
    def describe_stream(request: DescribeRequest) -> Any:
        """The description of one cell as it is written: server-sent events with `data: {"text": ...}`."""
        return StreamingResponse(service.stream(request), media_type="text/event-stream")

    async def endpoint(body: dict[str, Any], http: Any) -> Any:
        """The same requests in the form of a Hugging Face inference endpoint."""
        return await while_there(http, service.answer_body(body))

    endpoint.__annotations__ |= {"http": Request}
    app.post("/", responses=refusals)(endpoint)

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the model is loaded and how many requests wait."""
        return service.health()

    @app.get("/", include_in_schema=False, response_model=None)
    def start() -> Any:
        return RedirectResponse("/docs")

    return app


def _explain_errors(app: FastAPI) -> None:
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
        # What a reason quotes may hold half a character, which no answer can.
        spelt = reason.encode("utf-8", "backslashreplace").decode("utf-8")
        return JSONResponse({"error": spelt}, status, headers)

    app.exception_handler(RequestValidationError)(lambda _, error: refusal(422, explain(error.errors())))
    app.exception_handler(BadRequest)(lambda _, error: refusal(400, str(error)))
    app.exception_handler(HTTPException)(lambda _, error: refusal(error.status_code, str(error.detail)))
    app.exception_handler(ClientLeft)(lambda *_: refusal(499, "The client left before the answer."))
    app.exception_handler(Busy)(lambda *_: refusal(503, "Too many requests wait; try again.", {"Retry-After": "2"}))
    app.exception_handler(Exception)(lambda *_: refusal(500, "This is an error of the server; its log says more."))


def serve(model: str | None = None, host: str = "127.0.0.1", port: int = 8000, device: str | None = None) -> None:
    """Answer requests until stopped; running ones are finished first. `model` is what `scmmgpt.load` takes."""
    if not 1 <= port <= MAX_PORT:
        raise UserError(f"The port must lie between 1 and {MAX_PORT}, got {port}.")
    uvicorn = require("uvicorn")
    require("fastapi")
    from scmmgpt import auto  # noqa: F401 - the package's own classes, not the repository's copies
    from scmmgpt.device import choose_device
    from scmmgpt.loading import find_model

    from .handler import EndpointHandler

    directory = find_model(model)
    handler = EndpointHandler(str(directory), device=str(choose_device(device)))
    app = create_app(handler, directory.name)
    _run_server(uvicorn, app, host, port)


def _run_server(uvicorn: Any, app: FastAPI, host: str, port: int) -> None:
    """Answer until stopped, and say where as soon as the first request could come."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                say({}, as_json=False, lines=[f"Serving at http://{address} (/docs explains it); Ctrl-C stops it."])

    how: dict[str, Any] = {"log_level": "warning", "timeout_graceful_shutdown": SECONDS_TO_FINISH}
    config = uvicorn.Config(app, host=host, port=port, limit_concurrency=MAX_CONNECTIONS, **how)
    with suppress(KeyboardInterrupt):
        Server(config).run()
