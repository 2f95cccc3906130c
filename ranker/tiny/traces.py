"""Traces of the teacher for a cold start on asks that the built-in policy never saw.

    python -m ranker.tiny.traces --out runs/early.jsonl [--count 3000] [--ranker.drop=3] [--ranker.pool=append]
    python -m ranker.tiny.traces --out runs/valued.jsonl --ranker.name=valued --tasks passage-5 router-cost

Such asks state which candidates are out (`pool=append`), want several candidates named at once (`drop`), or are about
decisions that it was never asked for (values, ranges). The traces read rightly and decide as the policy does, mostly
by the wrong wish (`tutor.py`): they teach a form. Queries are of the built-in world's training split; the file has
the format of a run's `thoughts.jsonl`.
"""

import random
import sys
from pathlib import Path

from tqdm import tqdm

from ranker import config as settings, log, thoughts, world
from ranker.drive import load_ranker
from ranker.errors import Parser, UserError, exit_status, nearest
from ranker.files import open_whole
from ranker.tiny import tutor


def main() -> None:
    parser = Parser(prog="python -m ranker.tiny.traces", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", default=list(world.TASKS), help="of the built-in world; all if not named")
    args, overrides = parser.parse_known_args()
    if args.count < 1:
        raise UserError(f"--count must be at least 1, got {args.count}")
    for task in set(args.tasks) - set(world.TASKS):
        raise UserError(f"unknown task '{task}'{nearest(task, world.TASKS)}")
    config = settings.Config(ranker={"name": "elimination"})
    for text in overrides:
        if not text.startswith("--ranker."):
            raise UserError(f"unknown option {text}; options of the ranker are written --ranker.NAME=VALUE")
        settings.override(config, text)
    ranker, tasks = load_ranker(config.ranker, "command line"), args.tasks
    with open_whole(args.out) as file:
        for index in tqdm(range(args.count), desc="traces", unit="ask", dynamic_ncols=True):
            rng = random.Random(f"{args.seed}/traces/{index}")
            query, reading = world.draw(tasks[index % len(tasks)], "train", rng.randrange(10**9), args.seed)
            ask = ranker.sampled_asks(query, rng, None)[0]
            file.write(log.line(thoughts.record(ask, tutor.completion(reading, ask,
                                                                        wrong=rng.random() < tutor.ERROR_RATE))))
    print(f"written to {args.out}: {args.count} traces")


if __name__ == "__main__":
    sys.exit(exit_status(main))
