"""Models behind the driver that need no language model: scripted models, and a replay of recorded completions.

Scripted models serve tests and dry runs. The texts of all these models are read by the one parser.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ranker import plugins
from ranker.answers import alternatives, parse, parse_recorded
from ranker.data import Answer, Ask, Completion, Query
from ranker.drive import run
from ranker.errors import UserError
from ranker.prompting import scored_texts
from ranker.reading import json_lines, words

FIT = "do --ranker, --window, --step and --depth fit the recording?"


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
            if texts := scored_texts(ask):  # and log-probabilities of texts
                relevance = [ask.query.rel[c] for c in ask.pool] if len(texts) == len(ask.pool) else [0.0] * len(texts)
                completion.answer = replace(completion.answer, scores=tuple(relevance), lengths=(1,) * len(texts))
        return answered

    run(ranker, [query], Everybody(model), on_ask=lambda ask, *_: asked.append(ask))
    return asked


class Everybody(dict):
    """One model that plays every role, whatever it is called."""

    def __init__(self, model: Callable):
        super().__init__()
        self.model = model

    def __contains__(self, role: object) -> bool:
        return True

    def __missing__(self, role: str) -> Callable:
        return self.model


@dataclass
class Replay:
    """A model that replays recorded completions: the k-th ask about a query gets the query's k-th completion."""

    path: Path
    recorded: dict[str, list[str]]  # query id -> completions
    read: Callable[[str, Ask], Answer]  # the parser
    asked: Counter = field(default_factory=Counter)  # asks about each query

    def __call__(self, asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
        """Answer asks. Raise UserError where the completions of a query run out."""
        completions = []
        for ask in asks:
            name, texts = ask.query.id, self.recorded.get(ask.query.id, [])
            self.asked[name] += 1
            if self.asked[name] > len(texts):
                raise UserError(f"{self.path}: no recorded answer for ask {self.asked[name]} about query '{name}' "
                                f"({len(texts)} are there); {FIT}")
            text = texts[self.asked[name] - 1]
            completions.append((0, Completion([], [], text, True, self.read(text, ask))))
        return completions

    def again(self, read: Callable[[str, Ask], Answer]) -> "Replay":
        """Return a replay of the same completions from the start, read by another parser."""
        return replace(self, read=read, asked=Counter())

    def finish(self, unranked: Collection[str] = ()) -> None:
        """Raise UserError where completions are left over, but for the queries `unranked`, which nobody asked about."""
        left = {name: len(texts) - self.asked[name] for name, texts in self.recorded.items()
                if len(texts) > self.asked[name] and name not in unranked}
        if left:
            name, count = next(iter(left.items()))
            more = f" ({sum(left.values())} of {len(left)} queries in all)" if len(left) > 1 else ""
            raise UserError(f"{self.path}: of query '{name}' {len(self.recorded[name])} answers are recorded and "
                            f"{self.asked[name]} were asked for, so {count} would be left over{more}; {FIT}")


def replay(path: Path, read: Callable[[str, Ask], Answer] = parse_recorded) -> Replay:
    """Return a model that replays a JSON lines file.

    A record has `qid` or `query` and `response` or `text`, as logs of other tools and our traces.jsonl have; records of
    a query stand in the order of its asks. A response that is null or empty is an answer without words, which fails.
    `read` is the parser. Raise UserError for a broken record.
    """
    recorded: dict[str, list[str]] = {}
    for line, record in json_lines(path):
        query, text = (next((record[name] for name in names if record.get(name) is not None), None)
                       for names in (("qid", "query"), ("response", "text")))
        if text is None and not record.keys().isdisjoint(("response", "text")):
            text = ""
        if type(query) not in (str, int) or not isinstance(text, str):
            raise UserError(f"{path}:{line}: a recorded answer needs 'qid' and 'response' (or 'query' and 'text')")
        recorded.setdefault(str(query), []).append(words(text, f"{path}:{line}", "a recorded answer") if text.strip()
                                                   else text)
    return Replay(path, recorded, read)
