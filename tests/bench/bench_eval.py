"""How fast is what surrounds the model, on one core: `python tests/bench/bench_eval.py [ML_LATEST_SMALL]`. Median of
three.

Ends with one line of JSON: seconds by name, and the limits they are held to.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ranker import metrics  # noqa: E402
from ranker.data import Candidate, Query, write_queries  # noqa: E402
from ranker.evaluation import baselines, report  # noqa: E402
from ranker.prepare import movielens  # noqa: E402

REAL = Path(__file__).resolve().parents[3] / "shared/data/ml_latest_small"


def seconds(action) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def pools(count: int) -> list[Query]:
    """Queries of 12 words, 20 candidates of 60 words each, as passages are."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    return [Query(f"q{i}", "rank", " ".join(rng.choices(words, k=12)),
                  tuple(Candidate(f"c{k}", " ".join(rng.choices(words, k=60))) for k in range(20)), (1.0,) * 20)
            for i in range(count)]


def prepare(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        args = argparse.Namespace(folder=folder, history=20, min_history=None, candidates=20, seed=0)
        write_queries(Path(out) / "q.jsonl", movielens.prepare(args, Counter()))


def main() -> None:
    rng = random.Random(0)
    lists = [[float(rng.choice((0, 0, 0, 1, 2))) for _ in range(20)] for _ in range(100_000)]
    queries = pools(10_000)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REAL
    of_lists = f"all {len(metrics.NAMES)} metrics of 100,000 lists of 20"
    tasks = {of_lists: (2.0, lambda: metrics.compute(metrics.NAMES, lists)),
             "BM25 over 10,000 pools of 20 passages": (10.0, lambda: [baselines.bm25(q) for q in queries])}
    if folder.is_dir():
        tasks["ml-latest-small to JSON lines"] = (10.0, lambda: prepare(folder))
    found = {name: (seconds(action), limit) for name, (limit, action) in tasks.items()}
    print(report.markdown(["", "seconds", "at most"],
                          [[name, f"{s:.2f}", f"{limit:.0f}"] for name, (s, limit) in found.items()]))
    print(json.dumps({name: {"seconds": round(s, 3), "limit": limit} for name, (s, limit) in found.items()}))


if __name__ == "__main__":
    main()
