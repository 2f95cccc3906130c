"""The server: what clients of the rerank API send and get, limits, errors as JSON, waiting together, and a load."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from ranker import llms, serve, use
from ranker.errors import UserError
from test_train import ROOT, call  # noqa: F401  a fixture

pytest.importorskip("starlette")
from starlette.testclient import TestClient  # noqa: E402


def by_length(ask) -> str:
    """Rank by the length of texts; the text `boom` is a bug, `broken` a mistake of the operator."""
    texts = [ask.query.texts[c] for c in ask.pool]
    if "boom" in texts:
        raise RuntimeError("a bug")
    if "broken" in texts:
        raise UserError("this cannot be ranked")
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    return f"<answer>{' > '.join(f'[{i + 1}]' for i in order)}</answer>"


class Slow:
    """A model that counts its batches and can be held."""

    def __init__(self):
        self.free, self.batches = threading.Event(), []
        self.free.set()

    def __call__(self, asks):
        self.free.wait(20)
        self.batches.append(len(asks))
        return llms.scripted(by_length)(asks)


@pytest.fixture
def model():
    return Slow()


@pytest.fixture
def client(model):
    config = use.inputs.defaults([])
    config.ranker = {"name": "listwise"}
    limits = serve.Limits(documents=5, characters=2000, waiting=40, batch=8, seconds=5)
    app, worker = serve.application(use.Reranker(config, model, "m"), limits)
    with TestClient(app) as client:
        client.worker = worker
        yield client


DOCUMENTS = ["aa", "a", "aaaa", "aaa"]


def test_a_request_is_answered_as_clients_expect_it(client):
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        found = client.post(path, json={"model": "x", "query": "q", "documents": DOCUMENTS, "top_n": 3}).json()
        assert [r["index"] for r in found["results"]] == [2, 3, 0]
        assert [r["relevance_score"] for r in found["results"]] == [1, 1 / 2, 1 / 3]  # this ranker has no scores
        assert "document" not in found["results"][0] and found["model"] == "m" and found["id"]
    objects = [{"text": text, "url": "http://x"} for text in DOCUMENTS]
    found = client.post("/v1/rerank", json={"query": "q", "documents": objects, "return_documents": True}).json()
    assert [r["document"] for r in found["results"]] == [objects[i] for i in (2, 3, 0, 1)]  # as they were given
    found = client.post("/v1/rerank", json={"query": "q", "documents": DOCUMENTS, "top_n": None,
                                            "return_documents": None}).json()
    assert len(found["results"]) == 4 and "document" not in found["results"][0]
    assert client.get("/health").json() == {"status": "ok", "model": "m", "ranker": "listwise", "waiting": 0}
    assert client.post("/v1/rerank", json={"query": "q", "documents": ["one"]}).json()["results"][0]["index"] == 0


@pytest.mark.parametrize("body, status, said", [
    (b"{", 422, "no JSON"), (b"[]", 422, "must be a JSON object"), (b"[" * 1500, 422, "no JSON"),
    ({"documents": ["a"]}, 422, "query must be"), ({"query": " ", "documents": ["a"]}, 422, "query must be"),
    ({"query": "q"}, 422, "documents must be"), ({"query": "q", "documents": []}, 422, "not empty"),
    ({"query": "q", "documents": "a"}, 422, "documents must be"),
    ({"query": "q", "documents": ["a", 3]}, 422, "documents[1] must be"),
    ({"query": "q", "documents": [{"t": "a"}]}, 422, "documents[0] must be"),
    ({"query": "q", "documents": ["a"], "top_n": 0}, 422, "top_n"),
    ({"query": "q", "documents": ["a"], "return_documents": 1}, 422, "return_documents"),
    ({"query": "q", "documents": ["a"] * 6}, 422, "at most 5"),
    ({"query": "q" * 3000, "documents": ["a"]}, 413, "larger than 2000 bytes"),
    ({"query": "q", "documents": ["broken", "b"]}, 503, "the ranker failed"),  # a server behind it that is down, say
    ({"query": "q", "documents": ["boom", "b"]}, 500, "the ranker failed")])
def test_every_error_is_one_json_object(client, body, status, said):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/v1/rerank", content=body)
    assert answer.status_code == status and said in answer.json()["error"]["message"]
    assert client.post("/v1/rerank", json={"query": "q", "documents": DOCUMENTS}).status_code == 200  # it goes on


def test_other_paths_and_methods_are_told_as_json(client):
    assert client.get("/v1/rerank").json()["error"]["code"] == 405
    assert client.get("/nothing").json()["error"]["code"] == 404


def test_requests_that_wait_are_ranked_together_and_one_that_fails_fails_alone(client, model):
    model.free.clear()
    with ThreadPoolExecutor(12) as pool:
        texts = [*[DOCUMENTS] * 5, ["boom", "b"], *[DOCUMENTS] * 3]
        sent = [pool.submit(client.post, "/v1/rerank", json={"query": "q", "documents": d}) for d in texts]
        time.sleep(0.7)
        model.free.set()
        statuses = [f.result().status_code for f in sent]
    assert sorted(statuses) == [200] * 8 + [500] and max(model.batches) > 1


def test_a_long_request_holds_up_no_short_one():
    config = use.inputs.defaults([])
    config.ranker = {"name": "elimination"}
    rounds = []

    def model(asks):
        rounds.append([len(ask.pool) for ask in asks])
        time.sleep(0.02)
        return llms.scripted(lambda ask: f"<answer>[{len(ask.pool)}]</answer>")(asks)

    app, _ = serve.application(use.Reranker(config, model, "m"), serve.Limits())
    ended = []
    with TestClient(app) as client, ThreadPoolExecutor(4) as pool:
        def send(count):
            found = client.post("/v1/rerank", json={"query": "q", "documents": [f"hat {i}" for i in range(count)]})
            ended.append(count)
            return [r["index"] for r in found.json()["results"]]
        long = pool.submit(send, 60)
        while not rounds:
            time.sleep(0.01)
        short = [pool.submit(send, 3) for _ in range(3)]
        assert [f.result() for f in short] == [[0, 1, 2]] * 3 and long.result() == list(range(60))
    assert ended == [3, 3, 3, 60] and any(len(sizes) > 1 for sizes in rounds)


def test_too_many_that_wait_are_refused_and_a_wait_has_an_end(client, model):
    model.free.clear()
    with ThreadPoolExecutor(60) as pool:
        sent = [pool.submit(client.post, "/v1/rerank", json={"query": "q", "documents": DOCUMENTS}) for _ in range(60)]
        time.sleep(1.5)
        refused = [f.result() for f in sent if f.done()]
        assert refused and all(r.status_code == 503 and "try again" in r.json()["error"]["message"] for r in refused)
        time.sleep(4.5)
        model.free.set()
        ended = {f.result().status_code for f in sent}
    assert 504 in ended
    assert client.post("/v1/rerank", json={"query": "q", "documents": DOCUMENTS}).status_code == 200


def test_a_key_is_needed_where_one_is_set(model):
    config = use.inputs.defaults([])
    config.ranker = {"name": "listwise"}
    app, _ = serve.application(use.Reranker(config, model, "m"), serve.Limits(), "secret")
    with TestClient(app) as client:
        ask = {"query": "q", "documents": DOCUMENTS}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer s\u00e9cret".encode()}):
            answer = client.post("/v1/rerank", json=ask, headers=headers)
            assert answer.status_code == 401 and "secret" not in answer.text
        assert client.post("/v1/rerank", json=ask, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/health").status_code == 200


@pytest.fixture
def process(tmp_path):
    """A real server of the built-in policy, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(tmp_path / "log", "w")
    started = subprocess.Popen([sys.executable, "-m", "ranker.serve", "--model", "tiny", "--ranker", "first", "--port",
                                str(port)], cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            break
        except OSError:
            assert started.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
    yield started, url, port
    started.kill()
    started.wait()


def post(url: str, body: dict) -> int:
    request = urllib.request.Request(f"{url}/v1/rerank", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status if len(json.load(answer)["results"]) == len(body["documents"]) else 0
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_two_hundred_at_once_garbage_and_clients_who_leave_do_no_harm(process):
    started, url, port = process
    body = {"query": "warm and waterproof", "documents": [f"hat {i}" for i in range(8)]}
    memory = lambda: int(open(f"/proc/{started.pid}/statm").read().split()[1])  # noqa: E731  pages
    assert post(url, body) == 200
    before = memory()
    for garbage in (b"\0" * 500, b"GET / HTTP/9\r\n\r\n", b"POST /v1/rerank HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(garbage)  # and leaves
    with ThreadPoolExecutor(200) as pool:
        assert list(pool.map(lambda _: post(url, body), range(200))) == [200] * 200
    assert post(url, body) == 200 and memory() < before + 50_000  # 200 MB
    assert json.load(urllib.request.urlopen(f"{url}/health"))["waiting"] == 0
    started.send_signal(signal.SIGTERM)
    assert started.wait(20) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.mark.parametrize("arguments, said", [
    ([], "name what ranks"), (["--ckpt", "a", "--model", "b"], "name what ranks"),
    (["--model", "tiny", "--nonsense", "1"], "unknown argument '--nonsense'"),
    (["--model", "no/such/model"], "no/such/model"), (["--model", "tiny", "--port", "70000"], "cannot be listened at"),
    (["--model", "tiny", "--host", "no.such.host.invalid"], "cannot be listened at")])
def test_mistakes_of_the_command_end_in_one_line(call, arguments, said):  # noqa: F811
    status, _, err = call(serve, *arguments)
    assert status == 2 and said in err and len(err.splitlines()) == 1
