"""Worked examples for a policy that is to reason about histories, made from training users alone.

    python -m ranker.history_tutor data/five.jsonl --out data/traces5.jsonl --count 2000

A trace says what the history has in common (its years, where titles have them), then of each candidate its year, how
often training users have it (`rare`, `known`, `common`, by thirds of all texts), how close it is to the history (`far`,
`near`, `close`: thirds of the list by the item-kNN's cosines), and a mark from 0 to 9 for both together, then the
lowest mark and the decision: the first candidate that has it. Each of these steps is small, since a small model that
was to go from the words to the decision at once named candidates with the best words. The user's own items do not count
for their own trace, so nothing in it gives the right answer away. Mostly it is right, not always;
`objective.keep_above` leaves out what a reward does not like.

The counts stand in no prompt. A policy that imitates the traces has to learn them, which is what a ranker learns here.
"""

import json
import math
import random
import re
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tqdm import tqdm

from ranker import sources, thoughts
from ranker.config import Data
from ranker.data import Ask, Query
from ranker.drive import load_ranker
from ranker.errors import Parser, UserError, exit_status
from ranker.evaluation.baselines import owned
from ranker.files import open_whole

YEAR = re.compile(r"\((\d{4})\)")
OFTEN, NEAR = ("rare", "known", "common"), ("far", "near", "close")


class Tutor:
    """Know what training users have, and what follows from it for an ask."""

    def __init__(self, train: Sequence[Query]):
        self.users: dict[str, set[int]] = {}  # text -> users who have it
        self.of: dict[str, int] = {}  # group -> its user
        groups = dict.fromkeys(query.group or query.id for query in train)
        for number, (group, texts) in enumerate(zip(groups, owned(train), strict=True)):
            self.of[group] = number
            for text in texts:
                self.users.setdefault(text, set()).add(number)
        self.counts = sorted(map(len, self.users.values()))

    def often(self, text: str, me: int | None) -> float:
        """Return the share of texts that fewer users have, `me` not counted."""
        return bisect_left(self.counts, len(self.users.get(text, set()) - {me})) / max(len(self.counts), 1)

    def near(self, text: str, history: Sequence[str], me: int | None) -> float:
        """Return the mean cosine of a text to the items of a history, `me` not counted."""
        mine = self.users.get(text, set()) - {me}
        found = []
        for item in history:
            others = self.users.get(item, set()) - {me}
            found.append(len(mine & others) / math.sqrt(len(mine) * len(others)) if mine and others else 0.0)
        return sum(found) / max(len(found), 1)

    def trace(self, ask: Ask) -> str:
        """Return a thought and an answer: the least likely candidate by the counts of training users."""
        query, me = ask.query, self.of.get(ask.query.group or ask.query.id)
        texts = [query.texts[c] for c in ask.pool]
        often = [self.often(text, me) for text in texts]
        near = [self.near(text, query.context, me) for text in texts]
        ranks = sorted(near)
        closeness = [ranks.index(value) / max(len(ranks) - 1, 1) for value in near]  # within the pool
        years = [int(y) for item in query.context for y in YEAR.findall(item)]
        lines, marks = [f"Mostly around {int(median(years))}."] if years else [], []
        for k, (text, o, c) in enumerate(zip(texts, often, closeness), 1):
            year = next(iter(YEAR.findall(text)), None)
            said = [*([year] if year else []), third(OFTEN, o), third(NEAR, c)]
            marks.append(min(int(5 * (o + c)), 9))
            lines.append(f"[{k}] {', '.join(said)}: {marks[-1]}.")
        lowest = min(marks)
        worst = marks.index(lowest) + 1
        return f"<think>{' '.join(lines)} Lowest: {lowest}, so [{worst}].</think>\n<answer>[{worst}]</answer>"


def third(words: Sequence[str], share: float) -> str:
    return words[min(int(share * len(words)), len(words) - 1)]


def main() -> None:
    parser = Parser(prog="python -m ranker.history_tutor", description=__doc__)
    parser.add_argument("data", help="a JSON lines file of histories; its training split is used")
    parser.add_argument("--out", type=Path, required=True, help="the traces file to write")
    parser.add_argument("--count", type=int, default=2000, help="traces")
    parser.add_argument("--seed", type=int, default=0, help="of the asks")
    args = parser.parse_args()
    if args.count < 1:
        raise UserError(f"--count must be at least 1, got {args.count}")
    train = sources.held_out(Data(train=args.data), "train")
    if any(isinstance(query.context, str) for query in train):
        raise UserError(f"{args.data}: a history tutor needs contexts that are lists")
    tutor, ranker, statuses = Tutor(train), load_ranker({"name": "elimination"}), Counter()
    rng = random.Random(f"{args.seed}/traces")
    with open_whole(args.out) as file:
        for number, query in enumerate(tqdm(rng.sample(train, min(args.count, len(train))), unit="trace")):
            [ask] = ranker.sampled_asks(query, random.Random(f"{args.seed}/traces/{number}"), None)
            text = tutor.trace(ask)
            named = ask.pool[int(re.findall(r"\[(\d+)\]", text)[-1]) - 1]
            statuses["keeps the right one" if named not in query.positives else "drops the right one"] += 1
            file.write(json.dumps(thoughts.record(ask, text), ensure_ascii=False) + "\n")
    shares = ", ".join(f"{count / statuses.total():.1%} {what}" for what, count in statuses.most_common())
    print(f"{args.out}: {statuses.total()} traces; {shares}\nnext: python train.py configs/smollm2_thoughts.yaml")


if __name__ == "__main__":
    sys.exit(exit_status(main))
