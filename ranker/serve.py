"""Serve a ranker over HTTP, as clients of the rerank API of Jina and Cohere ask for it:

    python -m ranker.serve --ckpt runs/iranker/best
    curl http://127.0.0.1:8000/v1/rerank -d '{"query": "warm and waterproof", "documents": ["wool hat", "rain hat"]}'

`POST /v1/rerank` (and /v2/rerank, /rerank) takes `query`, `documents` (texts or objects with a `text`), `top_n` and
`return_documents`; `model` is accepted and not looked at. A result holds `index` and `relevance_score`: the ranker's
score where it has one, else 1 / place. `GET /health` says that the model is loaded. Requests that wait are ranked
together. Every error is one JSON object, {"error": {"message": ...}}.

It listens on this machine alone unless --host says otherwise. Where the environment variable R1_RANKER_KEY is set, a
request needs `Authorization: Bearer KEY`. Needs the packages of configs/serve.requirements.txt.
"""

import hmac
import json
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ranker import checkpoint
from ranker.errors import Parser, UserError, exit_status, one_line
from ranker.log import finite
from ranker.use import Ranked, Reranker, Rounds, load, query_of

KEY = "R1_RANKER_KEY"  # environment variable


@dataclass
class Limits:
    """Hold what a request may ask for, and how many may wait."""

    documents: int = 1000
    characters: int = 2_000_000  # of a request's body, in bytes
    waiting: int = 512  # requests
    batch: int = 32  # queries that are ranked together
    seconds: float = 300.0  # that a request waits for its ranking


@dataclass
class Job:
    """A request that waits for its ranking."""

    query: str
    documents: list
    done: Future = field(default_factory=Future)
    left: threading.Event = field(default_factory=threading.Event)  # nobody waits for it any more


class Worker(threading.Thread):
    """The one thread that ranks. Requests that wait join those that run between two rounds, and each is answered when
    it is done, so that a long one holds up no short one for longer than a round."""

    def __init__(self, ranker: Reranker, limits: Limits):
        super().__init__(daemon=True, name="ranker")
        self.ranker, self.limits = ranker, limits
        self.jobs: queue.Queue[Job | None] = queue.Queue(limits.waiting)
        self.rounds, self.running = Rounds(ranker), []  # of (Job, Ranked)

    def submit(self, job: Job) -> None:
        """Let a job wait. Raise UserError where too many do."""
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            raise UserError("too many requests wait; try again later") from None

    def run(self) -> None:
        stopping = False
        while not stopping or self.running:
            while not stopping and len(self.running) < self.limits.batch and not (self.running and self.jobs.empty()):
                if (job := self.jobs.get()) is None:
                    stopping = True
                elif job.done.set_running_or_notify_cancel():  # not one whose client waits no longer
                    self._begin(job)
            try:
                self.rounds.round()
            except Exception as error:  # one job must not take the thread, nor the others, with it
                self._apart(error)
            self._answer()

    def _begin(self, job: Job) -> None:
        try:
            self.running.append((job, self.rounds.add(query_of(job.query, job.documents, "rank"))))
        except Exception as error:
            job.done.set_exception(error)
        self._answer()

    def _answer(self) -> None:
        """Give those who are done their results, and let go of those that nobody waits for."""
        for job, ranked in self.running:
            if ranked.results:
                job.done.set_result(ranked)
            elif job.left.is_set():
                self.rounds.leave(ranked)
                job.done.set_result(ranked)
        self.running = [(job, ranked) for job, ranked in self.running if not job.done.done()]

    def _apart(self, error: Exception) -> None:
        """Rank the jobs of a round that failed one by one, so that each has its own result or error."""
        jobs, self.running, self.rounds = [job for job, _ in self.running], [], Rounds(self.ranker)
        if len(jobs) == 1:
            return jobs[0].done.set_exception(Failed(error))
        for job in jobs:
            try:
                job.done.set_result(self.ranker.rank(job.query, job.documents))
            except Exception as own:
                job.done.set_exception(Failed(own))

    def stop(self) -> None:
        self.jobs.put(None)


class Failed(Exception):
    """A ranking that failed while it was made, and why: no mistake of who asked for it."""

    def __init__(self, why: Exception):
        super().__init__(str(why))
        self.why = why


def read_request(body: bytes, limits: Limits) -> tuple[str, list, int | None, bool]:
    """Return (query, documents as given, top_n, return_documents) of a request. Raise UserError for what is none."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the body is no JSON") from None
    if not isinstance(given, dict):
        raise UserError("the body must be a JSON object with query and documents")
    query, documents = given.get("query"), given.get("documents")
    if not isinstance(query, str) or not query.strip():
        raise UserError("query must be a text that is not empty")
    if not isinstance(documents, list) or not documents:
        raise UserError("documents must be a list of texts, or of objects with a text, and not empty")
    if len(documents) > limits.documents:
        raise UserError(f"{len(documents)} documents; at most {limits.documents} are ranked in one request")
    for i, document in enumerate(documents):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise UserError(f"documents[{i}] must be a text or an object with a text")
        if any("\ud800" <= c < "\ue000" for c in text):
            raise UserError(f"documents[{i}]: half of a surrogate pair is no text")
    top_n, whole = given.get("top_n"), given.get("return_documents")
    if top_n is not None and (type(top_n) is not int or top_n < 1):
        raise UserError("top_n must be a whole number from 1 on")
    if whole is not None and type(whole) is not bool:
        raise UserError("return_documents must be true or false")
    return query, documents, top_n, bool(whole)


def reply(name: str, ranked: Ranked, documents: Sequence, top_n: int | None, whole: bool) -> dict:
    """Return the answer to a request."""
    given = lambda i: documents[i] if isinstance(documents[i], dict) else {"text": documents[i]}  # noqa: E731
    results = [{"index": r.index, "relevance_score": r.score if r.score is not None else 1 / r.place}
               | ({"document": given(r.index)} if whole else {}) for r in ranked[:top_n]]
    tokens = ranked.prompt_tokens + ranked.completion_tokens
    return finite({"id": os.urandom(8).hex(), "model": name, "object": "list", "results": results,
                   "usage": {"prompt_tokens": ranked.prompt_tokens, "total_tokens": tokens},
                   "meta": {"failed_asks": ranked.failed, "asks": len(ranked.steps),
                            "seconds": round(ranked.seconds, 3)}})


def application(ranker: Reranker, limits: Limits, key: str = ""):
    """Return the ASGI application and its worker."""
    import asyncio
    from contextlib import asynccontextmanager

    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    worker = Worker(ranker, limits)

    def error(status: int, message: str) -> JSONResponse:
        return JSONResponse({"error": {"message": one_line(message), "code": status}}, status)

    async def read(request: Request) -> bytes:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > limits.characters:
                raise HTTPException(413, f"the body is larger than {limits.characters} bytes")
        return body

    async def rerank(request: Request) -> Response:
        if key and not hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {key}".encode()):
            return error(401, f"a key is needed: Authorization: Bearer KEY, as the environment variable {KEY} has it")
        try:
            query, documents, top_n, whole = read_request(await read(request), limits)
        except UserError as wrong:
            return error(422, str(wrong))
        except ClientDisconnect:
            return Response(status_code=499)
        job = Job(query, [d["text"] if isinstance(d, dict) else d for d in documents])
        try:
            worker.submit(job)
        except UserError as full:
            return error(503, str(full))
        try:
            ranked = await asyncio.wait_for(asyncio.wrap_future(job.done), limits.seconds)
        except TimeoutError:
            return error(504, f"no ranking within {limits.seconds:g} seconds")
        except UserError as wrong:
            return error(422, str(wrong))
        except Failed as failed:  # a UserError is the operator's to mend, such as a server that is down
            traceback.print_exception(failed.why)
            return error(503 if isinstance(failed.why, UserError) else 500,
                         "the ranker failed; the server's log says how")
        finally:
            job.left.set()
        return JSONResponse(reply(ranker.name, ranked, documents, top_n, whole))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok" if worker.is_alive() else "dead", "model": ranker.name,
                             "ranker": ranker.ranker.name, "waiting": worker.jobs.qsize()},
                            200 if worker.is_alive() else 503)

    async def refused(request: Request, wrong: HTTPException) -> Response:
        return error(wrong.status_code, wrong.detail)

    @asynccontextmanager
    async def alive(app):
        worker.start()
        yield
        worker.stop()

    async def broken(request: Request, bug: Exception) -> Response:
        return error(500, "the server failed; its log says how")

    routes = [Route(path, rerank, methods=["POST"]) for path in ("/v1/rerank", "/v2/rerank", "/rerank")]
    app = Starlette(routes=[*routes, Route("/health", health)], lifespan=alive, exception_handlers={
        HTTPException: refused, Exception: broken})
    return app, worker


def main() -> None:
    parser = Parser(prog="python -m ranker.serve", description=__doc__)
    add = parser.add_argument
    add("--ckpt", help="a checkpoint or a run folder")
    add("--model", help="a model without a checkpoint: a folder, a GGUF file, smollm2, a name on a hub")
    add("--ranker", help="another ranker than the checkpoint's; sliding for a model without one")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8000)
    add("--documents", type=int, default=Limits.documents, help="the most documents of a request")
    add("--batch", type=int, default=Limits.batch, help="the most requests that are ranked together")
    args, rest = parser.parse_known_args()
    if bool(args.ckpt) == bool(args.model):
        raise UserError("name what ranks: --ckpt PATH or --model NAME")
    wrong = [text for text in rest if not text.startswith("--") or "=" not in text or "." not in text.split("=")[0]]
    if wrong:
        raise UserError(f"unknown argument '{wrong[0]}'; see python -m ranker.serve --help")
    try:
        import uvicorn
    except ImportError:
        raise UserError("the server needs uvicorn and starlette: pip install starlette uvicorn") from None
    options = dict(text.removeprefix("--").split("=", 1) for text in rest)
    key = os.environ.get(KEY)
    if key is not None and not (key.strip() and key.isascii()):
        raise UserError(f"{KEY} is set to {'nothing' if not key.strip() else 'more than ASCII'}; give a key of ASCII"
                        " characters, or unset it")
    if args.ckpt:
        checkpoint.find(args.ckpt)  # not looked for on a hub
    with listening(args.host, args.port) as place:  # before a model is loaded
        ranker = load(args.ckpt or args.model, args.ranker, settings_=options)
        app, _ = application(ranker, Limits(args.documents, batch=args.batch), key or "")
        print(f"ranking with {ranker.name} ({ranker.ranker.name}) at http://{args.host}:{place.getsockname()[1]}"
              "/v1/rerank", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)).run(sockets=[place])


def listening(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raise UserError where there is no such address or it is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        place = socket.socket(family)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"--host={host} --port={port} cannot be listened at: {error}") from None
    return place


if __name__ == "__main__":
    sys.exit(exit_status(main))
