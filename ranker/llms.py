"""Models behind the driver that need no language model: scripted models, and a replay of recorded completions.

Scripted models serve tests and dry runs. The texts of all these models are read by the one parser.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ranker import plugins
from ranker.answers import alternatives, parse, parse_recorded
from ranker.data import Answer, Ask, Completion, Query
from ranker.drive import Model, run
from ranker.errors import UserError
from ranker.reading import json_lines, words


def scripted(write: Callable[[Ask], str]) -> Callable[[Sequence[Ask]], list[tuple[int, Completion]]]:
    """Return a model that answers every ask with the text `write(ask)`."""
    return lambda asks: [(0, Completion([], [], text, True, parse(text, ask))) for ask in asks for text in [write(ask)]]


def right_answer(ask: Ask) -> str:
    """Write the completion of somebody who knows the relevance."""
    span = plugins.module("decision", ask.decision).right(ask)
    return f"<think>{ask.query.task}: {len(ask.pool)} shown</think>\n<answer>{span}</answer>"


def wrong_answer(ask: Ask) -> str:
    """Write a well-formed completion that decides exactly the other way round."""
    best = max(ask.query.relevance)
    return right_answer(replace(ask, query=replace(ask.query, relevance=tuple(best - r for r in ask.query.relevance))))


def rehearsal(ranker, query: Query) -> list[Ask]:
    """Return every ask that a ranker makes about `query` when the answers are right.

    So the asks of a ranker are known before they cost anything.
    """
    asked, answer = [], scripted(right_answer)

    def model(asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
        answered = answer(asks)
        for ask, (_, completion) in zip(asks, answered):
            if count := len(alternatives(ask)):  # the policy would give probabilities of the alternatives
                completion.answer = replace(completion.answer, scores=(1 / count,) * count)
        return answered

    run(ranker, [query], model, on_ask=lambda ask, *_: asked.append(ask))
    return asked


def replay(path: Path, read: Callable[[str, Ask], Answer] = parse_recorded) -> Model:
    """Return a model that replays a JSON lines file: the k-th ask about a query gets the query's k-th completion.

    A record has `qid` or `query` and `response` or `text`, as logs of other tools and our traces.jsonl have; records of
    a query stand in the order of its asks. `read` is the parser. Raise UserError for a broken record; the model raises
    UserError where the records of a query run out.
    """
    recorded: dict[str, list[str]] = {}
    for line, record in json_lines(path):
        query, text = (next((record[name] for name in names if name in record), None)
                       for names in (("qid", "query"), ("response", "text")))
        if not isinstance(query, (str, int)) or not isinstance(text, str):
            raise UserError(f"{path}:{line}: a recorded answer needs 'qid' and 'response' (or 'query' and 'text')")
        recorded.setdefault(str(query), []).append(words(text, f"{path}:{line}", "a recorded answer") if text.strip()
                                                   else text)
    asked: Counter = Counter()

    def model(asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
        completions = []
        for ask in asks:
            texts = recorded.get(ask.query.id, [])
            asked[ask.query.id] += 1
            if asked[ask.query.id] > len(texts):
                raise UserError(f"{path}: no recorded answer for ask {asked[ask.query.id]} about query "
                                f"'{ask.query.id}' ({len(texts)} are there); "
                                "do --ranker, --window, --step and the depth of the run fit the recording?")
            text = texts[asked[ask.query.id] - 1]
            completions.append((0, Completion([], [], text, True, read(text, ask))))
        return completions

    return model
