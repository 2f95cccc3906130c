"""A server behind the driver: any that answers /chat/completions as OpenAI's does.

Every answer is appended to a file as it comes, under a hash of what was sent and where. What is in the file is not
asked again, so that a killed evaluation loses nothing it has paid for, and another one that asks the same is free.
Tokens, and so dollars, are those the server counted, whether an answer was paid now or before.

What may pass is tried again: no connection, a timeout, 408, 429, 5xx, and a reply that is no chat completion. All else
is the user's to change and ends at once. Redirects are not followed: they would carry the key to another host. No stop
string is sent, since servers differ in whether they give it back; the parser takes the last answer anyway.
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
from ranker.prompting import Chat

# settings of the section `llm`
CHANGES_NO_ANSWER = ("key_env", "concurrency", "timeout_s", "retries", "cache", "price_in", "price_out")
LONGEST_WAIT = 300.0  # seconds, whatever a server asks for
SHOWN = 160  # characters of what a server said
SEE = {401: "llm.key_env", 403: "llm.key_env", 404: "llm.api and llm.model"}
# what is kept of an answer; model: as the server calls it
FIELDS = ("text", "finished", "model", "prompt_tokens", "tokens", "seconds")

logger = logging.getLogger(__name__)


class Again(Exception):
    """No answer this time; `wait` is how many seconds the server asked to wait."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


class Plain(urllib.request.HTTPErrorProcessor):
    """Gives back every reply as it is, errors and redirects too."""

    def http_response(self, request, response):
        return response

    https_response = http_response


def server_model(llm: settings.Llm, chat: Chat, max_new_tokens: int, path: Path,
                 progress: Callable[[int], None] = lambda asks: None,
                 pause: Callable[[float], object] | None = None) -> Model:
    """The server's model behind the driver. `path`: the file of answers; `pause` waits so many seconds between two
    tries.

    Raises UserError where the server refuses, or still has no answer after the last try; calls that are on their way
    then end first, and their answers are kept.
    """
    key, kept = read_key(llm), read_answers(path)
    opener = urllib.request.build_opener(Plain)
    lock, over = threading.Lock(), threading.Event()  # over: this ends badly, no other call is tried
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
                                    f"{len(kept)} answers are kept in"
                                    f" {path}, the same command goes on from there") from None
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
        chats = [chat.fitted(ask) for ask in asks]
        bodies = [{"model": llm.model, "messages": messages, "temperature": llm.temperature,
                   llm.limit_field: max_new_tokens} for messages, _ in chats]
        names = [hashlib.sha256(json.dumps([llm.api, body]).encode()).hexdigest() for body in bodies]
        missing = {name: body for name, body in zip(names, bodies) if name not in kept}  # equal ones once
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
    answer = parse(record["text"], ask, record["finished"])
    return record["prompt_tokens"], Completion([], [], record["text"], record["finished"], answer, record["seconds"],
                                               cut, record["tokens"])


def call(opener: urllib.request.OpenerDirector, llm: settings.Llm, key: str, body: dict) -> dict:
    """One try: what is kept of the reply. Raises Again, or UserError for what would fail again."""
    headers = {"Content-Type": "application/json", "User-Agent": "r1-ranker"} | ({"Authorization": f"Bearer {key}"}
                                                                                 if key else {})
    request = urllib.request.Request(llm.api.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers)
    started = time.perf_counter()
    try:
        with opener.open(request, timeout=llm.timeout_s) as response:
            status, wait, reply = response.status, response.headers.get("Retry-After", ""), response.read()
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: of a host name
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
    """Text, whether it ended by itself, and tokens. Thoughts that the server split off go back into their tags."""
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    message = choice["message"]
    thought, text = message.get("reasoning_content") or message.get("reasoning") or "", message.get("content") or ""
    if not isinstance(thought, str) or not isinstance(text, str):
        raise TypeError("a text is expected")
    if thought:
        # it may have been cut before its end
        text = f"<think>{thought}</think>\n{text}" if text else f"<think>{thought}"
    # half of a surrogate pair could not be written
    clean = lambda text: text.encode(errors="replace").decode()  # noqa: E731
    return {"text": clean(text), "finished": choice.get("finish_reason") != "length",
            "model": clean(str(reply.get("model", ""))), "prompt_tokens": int(usage.get("prompt_tokens") or 0),
            "tokens": int(usage.get("completion_tokens") or 0)}


@cache
def warn_of_no_usage(api: str) -> None:
    logger.warning(f"{api} does not say how many tokens it read and wrote; they count as 0, and so do their dollars")


def read_key(llm: settings.Llm) -> str:
    """The key, or "" where none is needed. Raises UserError; nothing is said of what `key_env` holds, which may be a
    key by mistake."""
    key = os.environ.get(llm.key_env, "").strip() if llm.key_env else ""
    if llm.key_env and not (key.isascii() and key.isprintable() and key):
        raise UserError("the environment variable that llm.key_env names holds no key; export it first")
    return key


def read_answers(path: Path) -> dict[str, dict]:
    """The answers of a file by their hash. A last line that a kill cut short is cut off; one that a full disk cut is
    skipped.

    Raises UserError for a file that holds none, which may be another one.
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
            raise UserError(f"{path}: no answers of a server stand in it; delete it, "
                            "or name another file with --llm.cache=FILE")
        if broken:
            logger.warning(f"{path}: {broken} line(s) cannot be read, and what they answered is asked again")
        if rest:
            os.truncate(path, path.stat().st_size - len(rest))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    return kept
