"""Models behind the driver that are not the policy: scripted ones for tests and dry runs, and a replay of recorded
completions.

They give texts, and the real parser reads them.
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
    """A model that answers every ask with the text `write(ask)`."""
    return lambda asks: [(0, Completion([], [], text, True, parse(text, ask))) for ask in asks for text in [write(ask)]]


def right_answer(ask: Ask) -> str:
    """Write the completion of somebody who knows the relevance."""
    return _completion(ask, plugins.module("decision", ask.decision).right(ask))


def wrong_answer(ask: Ask) -> str:
    """Write a well-formed completion that decides exactly the other way round."""
    return _completion(ask, plugins.module("decision", ask.decision).wrong(ask))


def _completion(ask: Ask, span: str) -> str:
    return f"<think>{ask.query.task}: {len(ask.pool)} shown</think>\n<answer>{span}</answer>"


def rehearsal(ranker, query: Query) -> list[Ask]:
    """Return every ask of a ranking of `query` by somebody who knows the relevance.

    It tells what a ranker will ask before that costs anything.
    """
    asked, answer = [], scripted(right_answer)

    def model(asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
        answered = answer(asks)
        for ask, (_, completion) in zip(asks, answered):
            if count := len(alternatives(ask)):  # as the policy would give them
                completion.answer = replace(completion.answer, scores=(1 / count,) * count)
        return answered

    run(ranker, [query], model, on_ask=lambda ask, *_: asked.append(ask))
    return asked


def replay(path: Path, read: Callable[[str, Ask], Answer] = parse_recorded) -> Model:
    """A model that gives the recorded completions of a JSON lines file: to the k-th ask about a query its k-th record.

    A record has `qid` or `query` and `response` or `text`, as other tools' logs and our traces.jsonl do; records of one
    query stand in the order of the calls. `read` is the parser.
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
                                f"'{ask.query.id}' ({len(texts)} are there);"
                                " do --ranker, --window, --step and the depth of the run fit the recording?")
            text = texts[asked[ask.query.id] - 1]
            completions.append((0, Completion([], [], text, True, read(text, ask))))
        return completions

    return model
