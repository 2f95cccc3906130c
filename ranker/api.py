"""A server behind the driver: any server that answers /chat/completions as OpenAI's does.

Every answer is appended to a file as it comes, under a hash of the request and the server's address. A request whose
answer is in the file is not sent again, so that a killed evaluation loses nothing it has paid for, and another
evaluation that asks the same is free. Tokens, and so dollars, are those that the server counted, whether an answer was
paid now or before.

Decisions a reader could doubt:
- Faults that may pass are tried again: no connection, a timeout, 408, 429, 5xx, and a reply that is no chat completion.
  Any other fault is the user's to mend and ends the evaluation at once.
- Redirects are not followed: they would carry the key to another host.
- No stop string is sent, since some servers return it and others do not; the parser takes the last answer anyway.
"""

import hashlib
import http.client
import json
import logging
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path

from ranker import config as settings, log
from ranker.answers import parse
from ranker.data import Ask, Completion, Cut
from ranker.drive import Model
from ranker.errors import UserError
from ranker.files import write_text
from ranker.prompting import Chat, scored_texts

# Settings of the section `llm` that change no answer.
CHANGES_NO_ANSWER = ("key_env", "concurrency", "timeout_s", "retries", "cache", "price_in", "price_out")
LONGEST_WAIT = 300.0  # seconds between two tries at most, whatever the server asks for
SHOWN = 160  # characters of a server's reply that an error line shows
SEE = {401: "llm.key_env", 403: "llm.key_env", 404: "llm.api and llm.model"}  # status -> the settings to look at
# The fields of an answer that are kept; `model` is the model's name in the server's words.
FIELDS = ("text", "finished", "model", "prompt_tokens", "tokens", "seconds")

logger = logging.getLogger(__name__)


class Again(Exception):
    """A fault that may pass, so that the request is tried again; `wait`: the seconds that the server asked to wait."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


class Plain(urllib.request.HTTPErrorProcessor):
    """A handler that returns every reply as it is, errors and redirects too."""

    def http_response(self, request, response):
        return response

    https_response = http_response


def server_model(llm: settings.Llm, chat: Chat, max_new_tokens: int, path: Path,
                 progress: Callable[[int], None] = lambda asks: None,
                 pause: Callable[[float], object] | None = None) -> Model:
    """Return a model for the driver that asks the server.

    `path` is the file of answers; `progress` is called with numbers of asks that are answered; `pause` waits some
    seconds between two tries. The model raises UserError where the server refuses a request, or still has no answer
    after the last try; requests on their way then end first, and their answers are kept.
    """
    key, kept = read_key(llm), read_answers(path)
    opener = urllib.request.build_opener(Plain)
    lock, over = threading.Lock(), threading.Event()  # over: a request has failed for good, so no other is sent
    pause = pause or over.wait

    def fetch(name: str, body: dict) -> None:
        for attempt in range(llm.retries + 1):
            if over.is_set():
                return
            try:
                record = call(opener, llm, key, body)
                break
            except Again as error:
                if attempt == llm.retries:
                    over.set()
                    raise UserError(f"{llm.api}: no answer of model '{llm.model}' in {attempt + 1} tries ({error}); "
                                    f"{len(kept)} answers are kept in {path}, the same command goes on "
                                    "from there") from None
                wait = max(min(error.wait, LONGEST_WAIT), 2 ** min(attempt, 6) * random.uniform(0.5, 1.0))
                logger.warning(f"{llm.api}: {error}; trying again in {wait:.0f} s")
                pause(wait)
            except UserError:
                over.set()
                raise
        with lock:
            if path.exists():
                log.append(path, [{"key": name} | record])
            else:
                write_text(path, log.line({"key": name} | record))
            kept[name] = record

    def model(asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
        if any(ask.by_logits for ask in asks):
            raise UserError("a server gives no logits of identifiers: leave out ranker.final")
        if any(map(scored_texts, asks)):
            raise UserError("a server gives no log-probabilities of texts, which ranker.name=likelihood needs")
        chats = [chat.fitted(ask) for ask in asks]
        bodies = [{"model": llm.model, "messages": messages, "temperature": ask.temperature or llm.temperature,
                   llm.limit_field: max_new_tokens} for ask, (messages, _) in zip(asks, chats)]
        names = [hashlib.sha256(json.dumps([llm.api, body, *([ask.sample] if ask.sample else [])]).encode()).hexdigest()
                 for ask, body in zip(asks, bodies)]  # each sample is a call of its own
        missing = {name: body for name, body in zip(names, bodies) if name not in kept}  # equal requests once
        over.clear()  # a server that was down may be up again
        progress(len(asks) - len(missing))
        with ThreadPoolExecutor(llm.concurrency) as pool:
            calls = [pool.submit(fetch, name, body) for name, body in missing.items()]
            try:
                for done in as_completed(calls):
                    done.result()
                    progress(1)
            except BaseException:
                over.set()
                raise
        return [completion(kept[name], ask, cut) for name, ask, (_, cut) in zip(names, asks, chats)]

    return model


def completion(record: dict, ask: Ask, cut: Cut) -> tuple[int, Completion]:
    """Return (prompt tokens, completion) for an ask from a record of the file of answers."""
    answer = parse(record["text"], ask, record["finished"])
    return record["prompt_tokens"], Completion([], [], record["text"], record["finished"], answer, record["seconds"],
                                               cut, record["tokens"])


def call(opener: urllib.request.OpenerDirector, llm: settings.Llm, key: str, body: dict) -> dict:
    """Send a request once and return the record of its answer; raise Again, or UserError for a fault that stays."""
    headers = ({"Content-Type": "application/json", "User-Agent": "r1-ranker"}
               | ({"Authorization": f"Bearer {key}"} if key else {}))
    request = urllib.request.Request(llm.api.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers)
    started = time.perf_counter()
    try:
        with opener.open(request, timeout=llm.timeout_s) as response:
            status, wait, reply = response.status, response.headers.get("Retry-After", ""), response.read()
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: a bad host name
        raise Again(str(getattr(error, "reason", error)) or type(error).__name__) from None
    said = " ".join(reply.decode(errors="replace").split()).replace(key or "\0", "(the key)")[:SHOWN]
    if status in (408, 429) or status >= 500:
        raise Again(f"status {status}: {said}", float(wait) if wait.isdecimal() else 0.0)
    if status != 200:
        raise UserError(f"{llm.api} refuses to ask model '{llm.model}', status {status}: {said}; "
                        f"see {SEE.get(status, 'the settings under llm')}")
    try:
        record = read_reply(json.loads(reply))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Again(f"no chat completion: {said}") from None
    if not record["prompt_tokens"]:
        warn_of_no_usage(llm.api)
    return record | {"seconds": time.perf_counter() - started}


def read_reply(reply: dict) -> dict:
    """Return the text of a reply, whether it ended by itself, the model and the tokens.

    Thoughts that the server split off the text are put back into their tags. Raise one of the errors that `call`
    catches for a reply that is no chat completion.
    """
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    message = choice["message"]
    thought, text = message.get("reasoning_content") or message.get("reasoning") or "", message.get("content") or ""
    if not isinstance(thought, str) or not isinstance(text, str):
        raise TypeError("a text is expected")
    if thought:
        # Without a text the thought was cut before its end.
        text = f"<think>{thought}</think>\n{text}" if text else f"<think>{thought}"
    # Half of a surrogate pair could not be written to a file, so that it is replaced.
    clean = lambda text: text.encode(errors="replace").decode()  # noqa: E731
    return {"text": clean(text), "finished": choice.get("finish_reason") != "length",
            "model": clean(str(reply.get("model", ""))), "prompt_tokens": int(usage.get("prompt_tokens") or 0),
            "tokens": int(usage.get("completion_tokens") or 0)}


@cache
def warn_of_no_usage(api: str) -> None:
    """Warn that a server does not count tokens, only once per server."""
    logger.warning(f"{api} does not say how many tokens it read and wrote; they count as 0, and so do their dollars")


def read_key(llm: settings.Llm) -> str:
    """Return the key, or "" where none is needed. Raise UserError where the environment variable holds no key.

    The message does not show `key_env`, which may be a key by mistake.
    """
    key = os.environ.get(llm.key_env, "").strip() if llm.key_env else ""
    if llm.key_env and not (key.isascii() and key.isprintable() and key):
        raise UserError("the environment variable that llm.key_env names holds no key; export it first")
    return key


def read_answers(path: Path) -> dict[str, dict]:
    """Return hash -> record for the answers in a file; none where there is no file.

    A last line that a kill cut short is cut off the file; a line that a full disk cut short is skipped. Raise UserError
    for a file without any answer, which may be another file given by mistake.
    """
    if not path.exists():
        return {}
    kept, broken = {}, 0
    try:
        *lines, rest = path.read_bytes().split(b"\n")
        for line in lines:
            try:
                record = json.loads(line)
                kept[record["key"]] = {name: record[name] for name in FIELDS}
            except (ValueError, LookupError, TypeError, RecursionError):
                broken += 1
        if not kept and (broken or rest):
            raise UserError(f"{path}: no answers of a server stand in it; "
                            "delete it, or name another file with --llm.cache=FILE")
        if broken:
            logger.warning(f"{path}: {broken} line(s) cannot be read, and what they answered is asked again")
        if rest:
            os.truncate(path, path.stat().st_size - len(rest))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    return kept
