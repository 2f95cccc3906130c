"""The log of an evaluation's asks, `traces.jsonl`: each ask with its completion, so that a killed evaluation goes on.

An ask is written as soon as it is answered. As long as the evaluation is unfinished, `unfinished.json` beside the log
says what is evaluated. The same command, started again, takes the answered asks from the log and asks only the rest; a
command that evaluates something else is refused. Answers that another evaluation has may be lent to this one.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ranker import log
from ranker.data import Answer, Ask, Completion
from ranker.drive import Model, Models
from ranker.errors import UserError
from ranker.files import lock, refuse_locked, refuse_read_only, write_text, writing


class AskLog:
    """The log of the asks of the evaluation in `folder`; its method `models` wraps the models that answer a row."""

    def __init__(self, folder: Path, evaluation: dict, anew: bool = False, lent: Iterable[dict] = ()):
        """Read the log in `folder` of the evaluation that the dict `evaluation` describes; write nothing yet.

        With `anew` the log is not used and everything is asked again. `lent` are records of another evaluation, each
        taken where its ask comes up here as it was. Raise UserError when the folder holds an unfinished evaluation of
        something else, is read-only, or is in use by another process.
        """
        self.path, self.mark = folder / "traces.jsonl", folder / "unfinished.json"
        self.evaluation = json.loads(json.dumps(evaluation))  # as json gives it back from the file
        self.anew, self.begun = anew, False
        self.done = self._finished_asks()
        refuse_read_only(folder)
        refuse_locked(folder)
        self.found, self.lent = by_key(self.done), by_key(lent)

    def begin(self) -> None:
        """Lock the folder and write the log as read, at the first call only; raise UserError if it changed meanwhile.

        It is called when there is an ask to add, not before, so that a mistake of the user's leaves no files behind.
        """
        if not self.begun:
            self.held = lock(self.path.parent)
            if self._finished_asks() != self.done:
                raise UserError(f"{self.path.parent}: another evaluation has written here in the meantime; "
                                "type the command again")
            # Writing the log anew removes a line that a crash cut short, and the asks of an older evaluation.
            write_text(self.path, "".join(map(log.line, self.done)))
            write_text(self.mark, json.dumps(self.evaluation, indent=1) + "\n")
            self.begun = True

    def _finished_asks(self) -> list[dict]:
        """Return the records of the unfinished evaluation in the folder, or none where there is none."""
        try:
            before = dict(json.loads(self.mark.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError):
            raise UserError(f"{self.mark} cannot be read; delete it to begin anew") from None
        changed = sorted(key for key in self.evaluation.keys() | before.keys()
                         if self.evaluation.get(key) != before.get(key))
        if changed:
            raise UserError(f"{self.path.parent} holds an unfinished evaluation with other {', '.join(changed)}; "
                            "finish it with the command it was begun with, name another folder with --out, "
                            f"or delete {self.mark}")
        return [] if self.anew else list(log.read(self.path))

    def models(self, row: str, order: int, inner: Models, progress=lambda asks: None) -> Models:
        """Return the model of each role, wrapped so that it is asked only the asks that the log does not hold.

        `row` and `order` say whose asks these are: the row's name and the number of the candidate order. `progress` is
        called with the number of asks that the log holds.
        """
        asked: Counter = Counter()
        return {role: self._model(row, order, model, progress, asked) for role, model in
                (inner if isinstance(inner, dict) else {"policy": inner}).items()}

    def _model(self, row: str, order: int, inner: Model, progress, asked: Counter) -> Model:
        def model(asks: Sequence[Ask]) -> list[tuple[int, Completion]]:
            keys = []
            for ask in asks:
                keys.append((row, order, ask.query.id, asked[ask.query.id]))
                asked[ask.query.id] += 1
            lent = {key: self.lent[key] for key, ask in zip(keys, asks)
                    if key not in self.found and is_of(self.lent.get(key, {}), ask)}
            self.found |= lent
            missing = [i for i, key in enumerate(keys) if key not in self.found]
            if len(missing) < len(asks):
                progress(len(asks) - len(missing))
            fresh = dict(zip(missing, inner([asks[i] for i in missing]) if missing else ()))
            self.begin()
            log.append(self.path, [*lent.values(), *(record(keys[i], asks[i], *fresh[i]) for i in missing)])
            return [fresh[i] if i in fresh else recorded(self.found[key], asks[i], self.path)
                    for i, key in enumerate(keys)]

        return model

    def finish(self) -> None:
        """Mark the evaluation, which must have begun, as finished, and unlock the folder."""
        with writing(self.mark):
            self.mark.unlink()
        self.held.close()


def by_key(records: Iterable[dict]) -> dict[tuple[str, int, str, int], dict]:
    """Return (row, order, query id, number of the ask) -> the record of that ask."""
    return {(r["row"], r["order"], r["query"], r["ask"]): r for r in records}


def is_of(record: dict, ask: Ask) -> bool:
    """Tell whether the record is of this very ask: query, candidates, decision."""
    return {key: record.get(key) for key in ask.described()} == ask.described()


def record(key: tuple[str, int, str, int], ask: Ask, prompt_tokens: int, completion: Completion) -> dict:
    """Return the line of the log for an ask with its completion; `key`: row, order, query id, number of the ask."""
    row, order, query, number = key
    return {"row": row, "order": order, "query": query, "ask": number, **ask.described(), "text": completion.text,
            "prompt_tokens": prompt_tokens, "tokens": completion.tokens, "finished": completion.finished,
            "seconds": completion.seconds, "status": completion.answer.status, "answer": completion.answer.value,
            **({"scores": completion.answer.scores} if completion.answer.scores else {}),
            **({"lengths": completion.answer.lengths} if completion.answer.lengths else {}),
            **({"cut": completion.cut} if completion.cut is not None else {})}


def recorded(record: dict, ask: Ask, path: Path) -> tuple[int, Completion]:
    """Return (prompt tokens, completion) from a line that `record` made; raise UserError when it is of another ask."""
    if not is_of(record, ask):
        raise UserError(f"{path}: ask {record['ask']} about query '{record['query']}' was another one; "
                        "delete unfinished.json beside it to begin anew")
    answer = Answer(record["status"], tuple(record["answer"]), scores=tuple(record.get("scores", ())),
                    lengths=tuple(record.get("lengths", ())), text=record["text"])
    return record["prompt_tokens"], Completion([], [], record["text"], record["finished"], answer, record["seconds"],
                                               record.get("cut"), record["tokens"])
