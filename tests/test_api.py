"""A server behind the driver: what it says is read by the one parser and counted as it counts; it may fail in every way
that servers do, and nothing that was paid for is asked again. The key is sent and stands nowhere else."""

import json
import logging
import random
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.utils.import_utils import is_serve_available

import evaluate
import train
from ranker import api, checkpoint, config as settings, drive, llms, preview, reading, rewarding, world
from ranker.asking import local_model
from ranker.data import Ask, Candidate, Query
from ranker.engine import policy as policies, pretrained
from ranker.engine.sampler import Sampler
from ranker.errors import UserError, exit_status
from ranker.evaluation import report
from ranker.prompting import Chat

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared/data"
KEY = "sk-4f1c99e0secret"


class Fake(ThreadingHTTPServer):
    """Its n-th reply (from 0) is `write(n, body)`: status, headers and content, or None for a connection that just
    ends."""

    daemon_threads, block_on_close = True, False

    def __init__(self, write):
        super().__init__(("127.0.0.1", 0), Handler)
        self.write, self.asked, self.keys, self.lock = write, [], [], threading.Lock()
        self.released = threading.Event()  # what hangs ends with the test
        self.api = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # a client that no longer waits


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(body)
            self.server.keys.append(self.headers["Authorization"])
        reply = self.server.write(number, body) if self.path == "/v1/chat/completions" else (404, {}, b"no such path")
        if reply is not None:
            status, headers, content = reply
            self.send_response(status)
            for name, value in ({"Content-Length": len(content)} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(write) -> Fake:
        server = Fake(write)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


def says(text, finish="stop", usage=(100, 20), **message):
    reply = {"choices": [{"message": {"role": "assistant", "content": text} | message, "finish_reason": finish}]}
    counted = {"usage": dict(zip(("prompt_tokens", "completion_tokens"), usage))} if usage else {}
    return 200, {}, json.dumps(reply | counted).encode()


def listed(number, body):
    """An order of all that was shown, the last first, and what was asked about."""
    question = body["messages"][-1]["content"]
    shown = re.findall(r"^(\[\d+\])", question, re.MULTILINE)
    return says(f"<think>{question.splitlines()[1]}</think>\n<answer>{' > '.join(reversed(shown))}</answer>")


def asks(count=4, decision="order"):
    candidates = tuple(Candidate(f"c{k}", f"text {k}") for k in range(3))
    queries = [Query(f"q{i}", "rank", f"context {i}", candidates, (0.0, 1.0, 2.0)) for i in range(count)]
    return [Ask(q, q.ids, decision) for q in queries]


@pytest.fixture
def model(tmp_path):
    """A server's model, the pauses it made, and its file of answers."""
    def make(server, pauses=None, max_new_tokens=64, chat=None, progress=lambda count: None, **options):
        llm = settings.Llm(**{"api": server.api, "model": "m", "retries": 3} | options)
        pause = None if pauses is None else pauses.append
        return api.server_model(llm, chat or Chat(), max_new_tokens, tmp_path / "answers.jsonl", progress, pause)
    return make


def texts(answered) -> list[str]:
    return [completion.text for _, completion in answered]


def test_a_reply_becomes_a_parsed_completion_with_the_tokens_the_server_counted(serve, model):
    server = serve(listed)
    (prompt_tokens, first), *_ = model(server, temperature=0.5, limit_field="max_completion_tokens")(asks(1))
    assert (prompt_tokens, first.tokens, first.ids, first.finished) == (100, 20, [], True) and first.seconds > 0
    assert first.answer.status == "ok" and first.answer.value == ("c2", "c1", "c0")
    [body] = server.asked
    assert body == {"model": "m", "messages": Chat().messages(asks(1)[0]), "temperature": 0.5,
                    "max_completion_tokens": 64}
    assert server.keys == [None]


def test_a_ranking_by_a_server_costs_what_the_server_counted(serve, model):
    [ranking] = drive.run(drive.load_ranker({"name": "sliding", "window": 2, "step": 1}), [asks(1)[0].query],
                          model(serve(listed)))
    assert (ranking.order == ["c2", "c0", "c1"]
            and (ranking.calls, ranking.prompt_tokens, ranking.completion_tokens) == (2, 200, 40))
    row = report.model_row("m", [[ranking]], 0.0)
    assert "dollars" not in report.cost_table([row])
    row.prices = (3.0, 15.0)
    assert row.dollars == pytest.approx(200 * 3e-6 + 40 * 15e-6)
    assert "dollars" in report.cost_table([row]) and "0.00120" in report.cost_table([row])


@pytest.mark.parametrize("reply, text, status", [
    (says("<answer>[1] > [2] > [3]</answer>", reasoning_content="[3]!"),
     "<think>[3]!</think>\n<answer>[1] > [2] > [3]</answer>", "ok"),
    (says("[2] > [1] > [3]", reasoning="<answer>[1]</answer>"), "<think><answer>[1]</answer></think>\n[2] > [1] > [3]",
     "missing_answer"),
    (says(None, "length", reasoning_content="so"), "<think>so", "truncated"),
    (says("", reasoning_content="<answer>[1] > [2] > [3]</answer>"), "<think><answer>[1] > [2] > [3]</answer>",
     "missing_answer"),
    (says("<think>so", "length"), "<think>so", "truncated"),
    (says(None, "content_filter"), "", "missing_answer"),
    # half a surrogate pair cannot be written
    (says("<answer>[1] > [2] > [3]</answer> done\ud800"), "<answer>[1] > [2] > [3]</answer> done?", "ok"),
])
def test_thoughts_come_back_into_their_tags_and_nothing_is_guessed(serve, model, reply, text, status):
    server = serve(lambda number, body: reply)
    for _ in range(2):  # the second time from the file
        [(_, completion)] = model(server)(asks(1))
        assert (completion.text, completion.answer.status) == (text, status)
    assert len(server.asked) == 1


def test_answers_stand_in_the_order_of_the_asks_whoever_is_finished_first(serve, model):
    together, turns, written = threading.Barrier(4), [threading.Event() for _ in range(4)], []

    def backwards(number, body):
        together.wait(10)  # all are asked at a time
        i = int(re.search(r"context (\d)", body["messages"][-1]["content"])[1])
        if i < 3:
            turns[i + 1].wait(10)
        written.append(i)
        turns[i].set()
        return listed(number, body)

    answered = model(serve(backwards), concurrency=4)(asks(4))
    assert written == [3, 2, 1, 0] and [re.search(r"context (\d)", t)[1] for t in texts(answered)] == list("0123")


def test_no_more_calls_at_a_time_than_concurrency_allows(serve, model):
    inside, most, lock = [0], [0], threading.Lock()

    def count(number, body):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.005)
        with lock:
            inside[0] -= 1
        return listed(number, body)

    model(serve(count), concurrency=2)(asks(10))
    assert most[0] <= 2


FAILURES = {
    "429": (429, {}, b"slow down"), "500": (500, {}, b"oops"), "503": (503, {}, b""), "408": (408, {}, b""),
    "connection ends": None,
    "body cut": (200, {"Content-Length": 900}, b'{"choices": ['), "broken JSON": (200, {}, b'{"choices": ['),
    "HTML": (200, {}, b"<html>busy</html>"), "not UTF-8": (200, {}, b"\xff\xfe\xfa"), "a list": (200, {}, b"[]"),
    "a number": (200, {}, b"7"), "no choices": (200, {}, b'{"choices": []}'),
    "an error as 200": (200, {}, b'{"error": "x"}'), "parts": says([{"type": "text", "text": "x"}]),
    "endless tokens": (200, {}, says("x")[2].replace(b"100", b"Infinity")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_may_pass_is_tried_again_after_pauses_that_double(serve, model, name):
    server, pauses = serve(lambda number, body: FAILURES[name] if number < 3 else listed(number, body)), []
    [(_, completion)] = model(server, pauses)(asks(1))
    assert completion.answer.ok and len(server.asked) == 4
    assert len(pauses) == 3 and all(2 ** k / 2 <= pause <= 2 ** k for k, pause in enumerate(pauses))


def test_a_call_that_takes_too_long_is_tried_again(serve, model):
    def slow_first(number, body):
        return server.released.wait(20) and None if number == 0 else listed(number, body)

    server, pauses = serve(slow_first), []
    [(_, completion)] = model(server, pauses, timeout_s=0.2)(asks(1))
    assert completion.answer.ok and len(server.asked) == 2 and len(pauses) == 1


def test_a_server_that_asks_to_wait_is_waited_for_but_not_for_ever(serve, model):
    waits, pauses = {0: "7", 1: "999999", 2: "soon"}, []
    server = serve(lambda number, body: (429, {"Retry-After": waits[number]}, b"") if number in waits
                   else listed(number, body))
    model(server, pauses)(asks(1))
    assert pauses[:2] == [7.0, api.LONGEST_WAIT] and pauses[2] <= 4


def test_a_server_that_is_not_there_is_named_after_the_last_try(model):
    with socket.socket() as free:  # taken, but nobody listens
        free.bind(("127.0.0.1", 0))
        nobody, pauses = SimpleNamespace(api=f"http://127.0.0.1:{free.getsockname()[1]}/v1"), []
        with pytest.raises(UserError, match=f"{nobody.api}: no answer of model 'm' in 4 tries .*refused"):
            model(nobody, pauses)(asks(1))
    assert len(pauses) == 3


@pytest.mark.parametrize("status, content, see", [
    (401, f'{{"error": {{"message": "wrong key {KEY}"}}}}', "llm.key_env"), (403, "no", "llm.key_env"),
    (404, "no such model", "llm.api and llm.model"),
    (400, "too long " * 100, "the settings under llm"), (422, "unexpected field", "the settings under llm"),
    (307, "elsewhere", "the settings under llm"),
])
def test_a_refusal_ends_at_once_and_says_who_refused_what(serve, model, tmp_path, monkeypatch, status, content, see):
    monkeypatch.setenv("MY_KEY", KEY)
    server, pauses = serve(lambda number, body: (status, {"Location": "/v1/elsewhere"}, content.encode())), []
    with pytest.raises(UserError) as caught:
        model(server, pauses, key_env="MY_KEY")(asks(1))
    said = str(caught.value)
    assert (all(words in said for words in (server.api, "'m'", f"status {status}", content[:8], f"see {see}"))
            and KEY not in said)
    assert len(said) < 300 and server.keys == [f"Bearer {KEY}"] and pauses == [] and list(tmp_path.iterdir()) == []


def test_a_refusal_ends_the_waiting_of_the_others(serve, model):
    failed = threading.Event()

    def one_waits_one_is_refused(number, body):
        if "context 0" in body["messages"][-1]["content"]:
            failed.set()
            return 503, {"Retry-After": "300"}, b""
        failed.wait(10)
        return 401, {}, b""

    started = time.perf_counter()
    with pytest.raises(UserError, match="status 401"):
        model(serve(one_waits_one_is_refused), concurrency=2)(asks(2))
    assert time.perf_counter() - started < 60


def test_what_was_answered_is_kept_and_the_same_command_goes_on(serve, model, tmp_path):
    def broken(number, body):
        return (500, {}, b"down") if "context 2" in body["messages"][-1]["content"] else listed(number, body)

    with pytest.raises(UserError, match=(r"in 4 tries \(status 500: down\); \d answers are kept in .*answers.jsonl, "
                                         r"the same command goes on")):
        model(serve(broken), [], concurrency=1)(asks(4))
    kept = (tmp_path / "answers.jsonl").read_text()
    assert len(kept.splitlines()) == 2  # those before it
    whole = serve(listed)
    counted = []
    assert texts(model(whole, progress=counted.append)(asks(4)))[3].startswith("<think>context 3") and sum(counted) == 4


class Killed(BaseException):
    pass


@pytest.mark.parametrize("rest", ["", '{"key": "ab', "\x00\x00"])
def test_a_killed_evaluation_pays_for_no_answer_twice(serve, model, tmp_path, monkeypatch, rest):
    class Pool(api.ThreadPoolExecutor):
        def shutdown(self, *arguments, **options):
            stopped.set()
            super().shutdown(*arguments, **options)

    def die(count):
        seen.append(count)
        if sum(seen) == 3:
            raise Killed

    stopped, seen = threading.Event(), []
    monkeypatch.setattr(api, "ThreadPoolExecutor", Pool)
    server = serve(lambda number, body: (number != 3 or stopped.wait(10)) and listed(number, body))
    with pytest.raises(Killed):
        model(server, progress=die, concurrency=1)(asks(8))
    assert len(server.asked) == 4  # the one that was on its way came in and is kept
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write(rest)  # of a line that was not finished
    expected = [f"<think>context {i}</think>\n<answer>[3] > [2] > [1]</answer>" for i in range(8)]
    assert texts(model(server)(asks(8))) == expected and len(server.asked) == 8
    assert texts(model(server)(asks(8))) == expected and len(server.asked) == 8  # all is in the file
    assert len({json.loads(line)["key"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()}) == 8


def test_only_what_would_be_the_same_call_comes_from_the_file(serve, model):
    server = serve(listed)
    for options in ({}, {"temperature": 1.0}, {"model": "n"}, {"limit_field": "max_completion_tokens"},
                    {"max_new_tokens": 65}, {"chat": Chat(words=1)}, {"chat": Chat(multi_turn=True)},
                    {"api": server.api + "/"}):
        asked = len(server.asked)
        model(server, **options)(asks(1))
        assert len(server.asked) == asked + 1
        model(server, concurrency=1, timeout_s=9.0, price_in=1.0, **options)(asks(1))
        assert len(server.asked) == asked + 1
    assert len(model(server)(asks(1) * 3)) == 3 and len(server.asked) == asked + 1


@pytest.mark.parametrize("content", ["notes without an end", "a: 1\nb: 2\n", '{"key": "x"}\n', "[]\n{", "\n"])
def test_another_file_is_not_taken_for_answers_and_stays_as_it_is(serve, model, tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="answers.jsonl: no answers of a server"):
        model(serve(listed))
    assert path.read_text() == content


def test_a_line_that_a_full_disk_cut_costs_no_other(serve, model, tmp_path, caplog):
    server, path = serve(listed), tmp_path / "answers.jsonl"
    expected = texts(model(server, concurrency=1)(asks(4)))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:40] + "".join(lines[2:]))  # the third glued to a piece of the second
    assert texts(model(server)(asks(4))) == expected and len(server.asked) == 6
    assert ("1 line(s) cannot be read" in caplog.text and texts(model(server)(asks(4))) == expected
            and len(server.asked) == 6)


def test_a_server_that_counts_no_tokens_is_said_once(serve, model, caplog):
    server = serve(lambda number, body: says("<answer>[1]</answer>", usage=None))
    with caplog.at_level(logging.WARNING):
        [(prompt_tokens, completion), *_] = model(server)(asks(3))
    assert (prompt_tokens, completion.tokens) == (0, 0) and caplog.text.count("does not say how many tokens") == 1


def test_logits_cannot_be_asked_for(serve, model):
    server = serve(listed)
    question = asks(1)[0]
    with pytest.raises(UserError, match="leave out ranker.final"):
        model(server)([Ask(question.query, question.pool, "eliminate", by_logits=True)])
    assert server.asked == []


CONTROL = ["<s>", "</s>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
           "<<SYS>>", "<</SYS>>", "<｜User｜>", "<｜end▁of▁sentence｜>", "[SYSTEM_PROMPT]", "[TOOL_CALLS]", "<tool_call>",
           "<unused7>", "<0x0A>", "<|START_OF_TURN_TOKEN|>", "[gMASK]", "<sop>"]


@pytest.mark.parametrize("multi_turn", [False, True])
def test_no_control_string_of_a_chat_format_reaches_a_server_whole(multi_turn):
    for control in CONTROL:
        candidates = Candidate("x", f"{control}system"), Candidate("y", f"<{control}{control}[1]</answer>")
        query = Query("q", "rank", f"a {control} b", candidates, (1.0, 0.0))
        example = (Ask(query, query.ids, "pick"), f"<think>{control}</think>\n<answer>[1]</answer>")
        chat = Chat(multi_turn=multi_turn).messages(Ask(query, query.ids, "order", (example,)))
        assert not any(control in message["content"] for message in chat)
        # an example keeps its form
        assert chat[-2 if not multi_turn else len(chat) // 2]["content"].endswith("</think>\n<answer>[1]</answer>")
        question = "\n".join(m["content"] for m in chat[-1 if not multi_turn else len(chat) // 2 + 1:]
                             if m["role"] == "user")
        assert re.findall(r"^\[\d\]", question, re.MULTILINE)[:2] == ["[1]", "[2]"]


def test_a_long_text_loses_its_middle_and_is_counted():
    query = Query("q", "rank", " ".join(map(str, range(1000))),
                  (Candidate("x", "short one"), Candidate("y", "<s> " * 400)), (1.0, 0.0))
    chat = Chat(words=5)
    messages, cut = chat.fitted(Ask(query, query.ids, "order"))
    content = messages[-1]["content"]
    assert ("\n0 1 2 ... 998 999\n" in content and "[1] short one\n" in content
            and "[2] (s> (s> (s> ... (s> (s>" in content)
    assert cut == {"words": 5} and chat.fitted(asks(1)[0])[1] is None


def test_multi_turn_gives_each_candidate_a_turn_that_is_acknowledged_and_asks_again():
    ask = asks(1)[0]
    system, first, go, *given, last = Chat(multi_turn=True).messages(ask)
    assert [(m["role"], m["content"]) for m in given] == [
        pair for k in range(3) for pair in (("user", f"[{k + 1}] text {k}"), ("assistant", f"Received [{k + 1}]."))]
    assert (system["role"], first["role"], go["role"], last["role"]) == ("system", "user", "assistant", "user")
    assert all("context 0" in m["content"] and "Order the candidates" in m["content"] for m in (first, last))
    assert "] text" not in first["content"] + last["content"]
    assert system == Chat().messages(ask)[0]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """evaluate.py in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, script=evaluate):
        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *map(str, arguments)])
        status = exit_status(script.main)
        return status, *capsys.readouterr()
    return run


CONFIG = ROOT / "configs/rankgpt.yaml"


def test_an_evaluation_shows_the_server_beside_the_baselines_and_its_key_stands_in_no_file(
        serve, command, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(listed)
    arguments = ["--config", CONFIG, f"--llm.api={server.api}", "--llm.model=some/model", "--llm.key_env=MY_KEY",
                 "--llm.price_in=3", "--llm.price_out=15", "--tasks", "passage-5", "rec-movie", "--limit", 3,
                 "--out", "out"]
    status, out, err = command(*arguments)
    assert status == 0 and len(server.asked) == 6 and set(server.keys) == {f"Bearer {KEY}"}, err
    assert re.search(r"^\| some/model +\| +1.0 \| +100 \| +20 \| +[\d.]+ \| 0.00060 \|", out, re.MULTILINE)
    assert "MRR against input order" in out and "untrained base" not in out
    results = json.loads(Path("out/results.json").read_text())
    queries = [q for task in ("passage-5", "rec-movie") for q in world.queries(task, "test", 3)]
    hand = [sum(1 / (1 + q.ids[::-1].index(q.positives[0])) for q in queries[i:i + 3]) / 3 for i in (0, 3)]
    assert results["rows"]["some/model"]["repaired"]["mean"]["MRR"] == pytest.approx(sum(hand) / 2)
    untimed = lambda text: re.sub(r"\d\.\d+ \|$", "", text, flags=re.MULTILINE)  # noqa: E731  baselines are timed anew
    assert untimed(command(*arguments)[1]) == untimed(out) and len(server.asked) == 6  # again, from the file
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 7 and not any(KEY.encode() in path.read_bytes() for path in files)


def test_an_evaluation_that_failed_goes_on_even_with_other_patience(serve, command):
    down = serve(lambda number, body: (500, {}, b"") if number >= 4 else listed(number, body))
    arguments = ["--config", CONFIG, f"--llm.api={down.api}", "--llm.model=m", "--tasks", "passage-5", "--limit", 6,
                 "--llm.retries=0", "--llm.concurrency=1"]
    status, _, err = command(*arguments)
    [kept] = Path("runs/eval-rankgpt").glob("test-*-m-*/answers.jsonl")
    assert status == 2 and f"4 answers are kept in {kept}" in err
    down.write = listed
    status, out, err = command(*arguments[:-2], "--llm.concurrency=3")
    assert status == 0 and len(down.asked) == 5 + 2, err
    status, _, err = command(*arguments, "--llm.words=9")
    assert status == 0, err  # finished ones stand in nobody's way


HITS = [{"qid": 7, "docid": f"d{i}", "content": f"text {i}"} for i in range(5)]


def test_a_run_is_ranked_again_by_a_server_window_by_window(serve, command):
    server = serve(listed)
    Path("corpus.json").write_text(json.dumps([{"query": "what is", "hits": HITS}]))
    Path("run.txt").write_text("".join(f"7 Q0 d{i} {i + 1} {9 - i} x\n" for i in range(5)))
    Path("qrels.txt").write_text("7 0 d4 2\n7 0 d0 1\n")
    run = ["--run", "run.txt", "--qrels", "qrels.txt", "--window", 3, "--step", 2]
    named = [f"--llm.api={server.api}", "--llm.model=a/b"]
    status, out, err = command(*run, "--corpus", "corpus.json", *named)
    assert status == 0 and len(server.asked) == 2 and "ranked by a/b with name=sliding window=3 step=2" in out, err
    assert "[1] text 2\n[2] text 3\n[3] text 4" in server.asked[0]["messages"][-1]["content"]
    [ranked] = Path("runs/eval-run").glob("a_b-*/run.a_b.txt")
    assert ranked.read_text().split()[2::6] == ["d4", "d1", "d0", "d3", "d2"]
    assert command(*run, *named)[2].startswith("error: --corpus FILE is needed")
    status, out, err = command(*run, "--corpus", "corpus.json", "--config", CONFIG, "--model.quantize=none",
                               "--rollout.max_new_tokens=8")
    assert status == 0 and "ranked by untrained base with name=sliding window=3 step=2" in out, err


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data beside the repository")
@pytest.mark.slow
def test_rankvicuna_behind_a_server_ranks_trec_dl19_as_it_was_recorded(serve, command):
    recorded, lock = {}, threading.Lock()
    for _, record in reading.json_lines(next((REAL / "rankllm_replay").glob("A_*.responses.jsonl.gz"))):
        recorded.setdefault(str(record["qid"]), []).append(record["response"])
    corpus = REAL / "trec_dl_bm25/retrieve_results_dl19_bm25_top100.json.gz"
    by_text = {" ".join(text.split()): query for query, text in evaluate.foreign.read_corpus(corpus)[0].items()}

    def answer(number, body):
        with lock:
            query = by_text[body["messages"][-1]["content"].splitlines()[1]]
            return says(f"<answer>{recorded[query].pop(0)}</answer>", usage=(2000, 80))

    server = serve(answer)
    run, qrels = REAL / "trec_dl_bm25/run.dl19.bm25_top100.txt.gz", REAL / "trec_dl_bm25/qrels.dl19-passage.txt.gz"
    status, out, err = command("--run", run, "--qrels", qrels, "--corpus", corpus, "--config",
                               ROOT / "configs/rankgpt-paper.yaml", "--out", "out", f"--llm.api={server.api}",
                               "--llm.model=rank_vicuna", "--llm.multi_turn=false", "--eval.relevance_level=2")
    assert status == 0 and len(server.asked) == 43 * 9, err
    found = json.loads(Path("out/results.json").read_text())["rows"]["rank_vicuna"]["repaired"]["mean"]
    assert (found["nDCG@10"], found["AP"]) == (pytest.approx(0.6682, abs=5e-5), pytest.approx(0.3316, abs=5e-5))
    assert re.search(r"\| rank_vicuna +\| +9.0 \| +18000 \| +720 \|", out)


@pytest.mark.parametrize("arguments, words", [
    (["--llm.api=http://127.0.0.1:1/v1"], "both llm.api"),
    (["--llm.model=m"], "both llm.api"),
    (["--llm.api=127.0.0.1:8000/v1", "--llm.model=m"], "llm.api must read as http"),
    (["--llm.api=http://127.0.0.1:80000/v1", "--llm.model=m"], "llm.api must read as http"),
    (["--llm.api=http://me:secret@host/v1", "--llm.model=m"], "llm.api must read as http"),
    (["--llm.api=http://h/v1?key=secret", "--llm.model=m"], "llm.api must read as http"),
    (["--llm.api=http://127.0.0.1:1/v1", "--llm.model=m", "--llm.key_env=sk-secret"], "not the key"),
    (["--llm.api=http://127.0.0.1:1/v1", "--llm.model=m", "--llm.key_env=gsk_secret"], "holds no key"),
    (["--llm.api=http://127.0.0.1:1/v1", "--llm.model=m", "--llm.limit_field=tokens"],
     "llm.limit_field must be one of max_tokens"),
])
def test_mistakes_end_with_one_line_that_repeats_no_secret(command, tmp_path, arguments, words):
    status, _, err = command("--config", CONFIG, "--tasks", "passage-5", "--limit", 1, *arguments)
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    assert status == 2 and words in line and "secret" not in err and list(tmp_path.iterdir()) == []


def test_a_server_is_not_trained_and_takes_no_checkpoint(command, monkeypatch):
    server = ["--llm.api=http://127.0.0.1:1/v1", "--llm.model=m"]
    status, _, err = command(CONFIG, *server, script=train)
    assert status == 2 and "evaluated, not trained" in err
    monkeypatch.setattr(checkpoint, "find", Path)
    monkeypatch.setattr(checkpoint, "describe",
                        lambda folder: {"prompts": {}, "config": settings.as_dict(settings.Config())})
    status, _, err = command("--ckpt", "x", *server)
    assert status == 2 and "a server's model takes no checkpoint" in err


@pytest.mark.parametrize("name", ["rankgpt", "rankgpt-paper"])
def test_its_configs_can_be_trained_from(name):
    config = settings.load(ROOT / f"configs/{name}.yaml")
    ranker = drive.load_ranker(config.ranker)
    assert ((config.ranker["window"], config.ranker["step"], config.llm.words, config.llm.temperature)
            == (20, 10, 300, 0))
    [ask] = ranker.sampled_asks(world.query("rec-movie", "train", 0), random.Random(0), None)
    assert preview.judged(rewarding.load(config.reward), ask, llms.right_answer).rewards["total"] == 1


@pytest.fixture(scope="module")
def real_server():
    """`transformers serve` with the built-in policy, and the prompts that its model is given."""
    if not is_serve_available():
        pytest.skip("transformers serve needs fastapi, uvicorn and openai (tests/requirements.txt)")
    from transformers.cli.serve import Serve
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name, given = str(pretrained.TINY), []
    server = Serve(name, device="cpu", dtype="float32", host="127.0.0.1", port=port, non_blocking=True)
    served, _ = server._model_manager.load_model_and_processor(f"{name}@main")
    generate = served.generate
    served.generate = lambda **inputs: given.append(inputs["input_ids"][0].tolist()) or generate(**inputs)
    while not server.server.started:
        time.sleep(0.01)
    yield settings.Llm(api=f"http://127.0.0.1:{port}/v1", model=name, retries=0, concurrency=1), given
    server.kill_server()


@pytest.fixture(scope="module")
def policy():
    return policies.load(settings.Model(quantize="none", device="cpu"))


def some_asks():
    rng = random.Random(0)
    for i, decision in enumerate(("order", "eliminate", "pick", "narrow", "order", "score")):
        query = world.query(list(world.TASKS)[i], "test", i)
        yield Ask(query, tuple(rng.sample(query.ids, 1 if decision == "score" else min(len(query.ids), 6))), decision)


@pytest.mark.parametrize("max_new_tokens", [192, 8])
def test_a_real_server_says_what_the_policy_says_by_itself(real_server, policy, tmp_path, monkeypatch, max_new_tokens):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    llm, given = real_server
    given.clear()
    over_http = api.server_model(llm, Chat(), max_new_tokens, tmp_path / "answers.jsonl")(list(some_asks()))
    alone = local_model(Sampler(policy, settings.Rollout(max_new_tokens=max_new_tokens)))(list(some_asks()))
    assert given == [policy.prompter.encode(ask) for ask in some_asks()]  # the same token ids
    for (theirs, reply), (ours, completion) in zip(over_http, alone, strict=True):
        assert (theirs, reply.answer, reply.finished) == (ours, completion.answer, completion.finished)
        # it splits thoughts off and strips them
        assert reply.text.split() == completion.text.replace("<think> ", "<think>").split()
        # the end token, where we stop at the end of the answer
        assert reply.tokens == completion.tokens + completion.finished
    assert {reply.answer.status for _, reply in over_http} == ({"truncated"} if max_new_tokens == 8 else {"ok"})


def test_a_real_server_that_serves_another_model_says_so(real_server, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    llm, _ = real_server
    other = settings.Llm(api=llm.api, model="another")
    with pytest.raises(UserError, match="status 400: .*Server is pinned to"):
        api.server_model(other, Chat(), 8, tmp_path / "answers.jsonl")(asks(1))
