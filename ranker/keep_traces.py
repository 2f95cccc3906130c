"""Keep the completions of an evaluation that a reward likes, as traces for a cold start.

A larger model, such as one behind a server, ranks the training split; what it wrote rightly is what a smaller model
imitates (draw `recorded`):

    python evaluate.py --config CONFIG --data.train=FILE --split train --llm.api=URL --llm.model=NAME --out traces
    python -m ranker.keep_traces traces --data FILE --reward top1_hit --above 1 --out traces.jsonl
    python train.py CONFIG --draw.name=recorded --draw.traces=traces.jsonl --objective.name=sft

A completion without a thought is kept too; `--format` keeps those alone that have the form of a thought and an answer.
Left out and counted are asks among candidates that are all as good (such as all those behind a wrong elimination, where
every answer is as right), and queries that training holds out for validation and test, unless `--held_out` says that
other files serve for these.
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from ranker import log, plugins, rewarding, sources, thoughts
from ranker.answers import parse
from ranker.data import Ask, Completion, Group, Query
from ranker.errors import Parser, UserError, exit_status, nearest
from ranker.files import open_whole


def main() -> None:
    parser = Parser(prog="python -m ranker.keep_traces", description=__doc__)
    add = parser.add_argument
    add("evaluation", type=Path, help="the folder of an evaluation")
    add("--data", nargs="+", required=True, help="the JSON lines files that it ranked")
    add("--reward", default="top1_hit", help="a task reward of rewards/, with its defaults")
    add("--above", type=float, default=1.0, help="the least reward that is kept")
    add("--row", help="whose completions, where several models were evaluated")
    add("--format", action="store_true", help="only completions of a thought and an answer, and nothing else")
    add("--held_out", action="store_true", help="keep queries that training would hold out as well")
    add("--out", type=Path, required=True, help="the traces file to write")
    args = parser.parse_args()
    queries = {query.id: query for query in sources.read_files(args.data)}
    reward, form = rewarding.load({args.reward: {"weight": 1.0}}, "--reward"), plugins.module("reward", "format")
    records, counts = chosen(args.evaluation, args.row), Counter()
    with open_whole(args.out) as file:
        for record in tqdm(records, unit="trace"):
            ask = asked(record, queries, args.evaluation)
            completion = Completion([], [], record["text"], record["finished"],
                                    parse(record["text"], ask, record["finished"]))
            split = sources.split_of(ask.query.group or ask.query.id, 0)
            reason = ("held out for validation or test" if split != "train" and not args.held_out else
                      "asks with nothing to tell apart" if len({ask.query.rel[c] for c in ask.left}) < 2 else
                      "answers that cannot be read" if not completion.answer.ok else
                      "not in the form" if args.format and not form.exact(completion.text) else
                      f"rewards below {args.above:g}" if paid(reward, ask, completion) < args.above else "")
            counts[reason] += 1
            if not reason:
                file.write(json.dumps(thoughts.record(ask, completion.text), ensure_ascii=False) + "\n")
        if not counts[""]:
            raise UserError(f"{args.evaluation}: no completion is worth keeping (" + ", ".join(
                f"{n} {why}" for why, n in counts.items() if why) + ")")
    left = "".join(f"; left out {n}: {why}" for why, n in counts.items() if why)
    print(f"{args.out}: {counts['']} of {counts.total()} completions{left}\n"
          f"next: python train.py CONFIG --draw.name=recorded --draw.traces={args.out} --objective.name=sft")


def chosen(folder: Path, row: str | None) -> list[dict]:
    """Return the records of one model's completions. Raise UserError where it is not clear whose."""
    path = folder / "traces.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} holds no traces.jsonl, so it is no evaluation of a model")
    records = [record for record in log.read(path) if record["text"]]
    rows = list(dict.fromkeys(record["row"] for record in records))
    if row is None and len(rows) == 1:
        [row] = rows
    if row not in rows:
        said = "name one with --row" if row is None else f"--row: none is called '{row}'{nearest(row, rows)}"
        raise UserError(f"{path} holds completions of {', '.join(rows) or 'nobody'}; {said}")
    return [record for record in records if record["row"] == row]


def asked(record: dict, queries: dict[str, Query], where: Path) -> Ask:
    """Return the ask of a record. Raise UserError for a query or a candidate that the data lacks."""
    query = queries.get(record["query"])
    if query is None or not set(record["pool"]) <= set(query.ids):
        raise UserError(f"{where}: query '{record['query']}' or a candidate of it does not stand in the --data named")
    return Ask.recorded(query, record["pool"], record)


def paid(reward: list, ask: Ask, completion: Completion) -> float:
    """Return the task reward of a completion, -inf where it has none."""
    rewarding.score(reward, [Group(ask, [], [completion])])
    value = completion.rewards["task"]
    return -math.inf if math.isnan(value) else value


if __name__ == "__main__":
    sys.exit(exit_status(main))
