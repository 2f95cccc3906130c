"""Measure what AoR's theta and its limit of samples buy, for judges of known quality.

    python tests/bench/bench_aor.py [--queries 10] [--ckpt RUN/best] [--noise 0 2 4]

The built-in policy (or a checkpoint of it) writes forty orders of every query at temperature 1, once. It was never
taught to judge, so the judge is played: a chain is given ten times the nDCG@10 of its order, and a normal error of
--noise points, clipped to 0 to 10. All rows choose from the same forty orders. `samples` and `judge calls` are means
over the queries. Ends with one line of JSON.
"""

import json
import random
import re
import statistics
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tqdm import tqdm  # noqa: E402

from ranker import config as settings, llms, metrics, world  # noqa: E402
from ranker.answers import parse  # noqa: E402
from ranker.asking import sample_groups  # noqa: E402
from ranker.data import Ask, Query  # noqa: E402
from ranker.drive import load_ranker, run  # noqa: E402
from ranker.engine import policy as policies  # noqa: E402
from ranker.engine.sampler import Sampler  # noqa: E402
from ranker.errors import Parser, exit_status  # noqa: E402
from ranker.evaluation.report import markdown  # noqa: E402

MOST = 40
CHAIN = re.compile(r"^Chain \d+: (.*)$", re.MULTILINE)


def main() -> None:
    parser = Parser(prog="bench_aor.py", description=__doc__)
    parser.add_argument("--queries", type=int, default=10, help="of each task")
    parser.add_argument("--ckpt", type=Path, help="a checkpoint instead of the untrained policy")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 2.0, 4.0], help="of the judge, points")
    args = parser.parse_args()
    queries = [query for task in world.TASKS for query in world.queries(task, "test", args.queries)]
    written = sampled(queries, args.ckpt)
    rows = {"one sample": measured(queries, written, None, samples=1, most=1, judge="majority")}
    for samples in (20, MOST):
        for judge in ("majority", "borda"):
            rows[f"{judge}, {samples} samples"] = measured(queries, written, None, samples=samples, most=samples,
                                                           judge=judge)
    for noise in args.noise:
        for theta in (0.0, 2.0, 5.0):
            for most in (20, MOST) if theta else (20,):
                rows[f"judge off by {noise:g}, theta {theta:g}, at most {most}"] = measured(
                    queries, written, noise, samples=20, most=most, theta=theta)
    print(markdown(["", "MRR", "nDCG@10", "samples", "judge calls"],
                   [[name, f"{row['MRR']:.3f}", f"{row['nDCG@10']:.3f}", f"{row['samples']:.1f}",
                     f"{row['judge']:.1f}"] for name, row in rows.items()]))
    print(json.dumps(rows))


def sampled(queries: list[Query], folder: Path | None) -> dict[str, list[str]]:
    """Return query id -> the texts of forty orders."""
    config = settings.load(Path(__file__).parents[2] / "configs/aor.yaml", [])
    policy = policies.load(config.model, None, folder, max_new_tokens=config.rollout.max_new_tokens)
    asks = [Ask(query, query.ids, "order") for query in queries]
    with tqdm(total=len(asks) * MOST, desc="orders", unit="sample", dynamic_ncols=True) as bar:
        groups = sample_groups(Sampler(policy, config.rollout), asks, MOST, 1.0, 0, bar.update)
    return {group.ask.query.id: [c.text for c in group.completions] for group in groups}


def measured(queries: list[Query], written: dict, noise: float | None, **options) -> dict[str, float]:
    """Return the quality and the cost of AoR over recorded orders."""
    asked = Counter()

    def policy(ask: Ask) -> str:
        asked["samples"] += 1
        return written[ask.query.id][ask.sample]

    def judge(ask: Ask) -> str:
        asked["judge"] += 1
        given, rng = {}, random.Random(f"{ask.described()}/{dict(ask.told)['chains']}")
        for k, text in enumerate(CHAIN.findall(dict(ask.told)["chains"]), 1):
            answer = parse(text, replace(ask, decision="order", told=()))
            points = 10 * metrics.of([ask.query.rel[c] for c in answer.value], names=("nDCG@10",))["nDCG@10"]
            given[f"Chain {k}"] = min(max(points + rng.gauss(0, noise), 0.0), 10.0)
        return f"<answer>{json.dumps(given)}</answer>"

    rankings = run(load_ranker({"name": "aor"} | options), queries,
                   {"policy": llms.scripted(policy), "base": llms.scripted(judge)})
    found = [metrics.of(ranking.gains, names=("MRR", "nDCG@10")) for ranking in rankings]
    return ({name: round(statistics.mean(values[name] for values in found), 4) for name in ("MRR", "nDCG@10")}
            | {name: asked[name] / len(queries) for name in ("samples", "judge")})


if __name__ == "__main__":
    sys.exit(exit_status(main))
