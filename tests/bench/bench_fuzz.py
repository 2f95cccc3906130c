"""Does the answer parser stay whole and fast on garbage? `python tests/bench/bench_fuzz.py [COUNT]` (default 20,000
completions).

Completions are golden ones cut, doubled and sprinkled with fragments, and a tenth is long (up to some 10 kB), about
pools of 1 to 20 candidates with short and with long texts. Ends with one line of JSON; exit status 1 when a parse
raised or took a millisecond. Time is of the processor; what seems slow is timed again, since the first call of a
pattern compiles it and a busy machine adds its own.
"""

import json
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from test_answers import DECISIONS, FRAGMENTS, POOL, ask, check, junk  # noqa: E402

from ranker import titles  # noqa: E402
from ranker.answers import parse  # noqa: E402
from ranker.evaluation import report  # noqa: E402

LIMIT = 1.0  # ms


def pools(rng: random.Random) -> list[list[str]]:
    """Titles that resemble each other, and passages of 60 words."""
    words = [f"word{i}" for i in range(500)] + ["of", "the", "II", "3", "1979"]
    made = [list(POOL), [f"Movie {k} of 20 [{20 - k}]" for k in range(20)]]
    return made + [[" ".join(rng.choices(words, k=count)) for _ in range(20)] for count in (3, 60)]


def completion(rng: random.Random, texts: list[str]) -> str:
    kind = rng.random()
    if kind < 0.6:
        return junk(rng)
    named = [text[:rng.randint(0, 300)] if rng.random() < 0.5 else text.swapcase()
             for text in rng.choices(texts, k=rng.randint(1, 4))]
    inside = rng.choice(("\n", " > ", ", ", " or ")).join(named)
    if kind > 0.9:
        inside = "".join(rng.choices([*FRAGMENTS, *texts], k=rng.randint(50, 400)))[:10_000]
    return rng.choice((inside, f"<answer>{inside}</answer>", f"<think>{inside}</think><answer>{inside}</answer>"))


def milliseconds(text: str, question, finished: bool, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        titles.normal.cache_clear()  # of this completion's own texts, which no other completion has
        started = time.thread_time_ns()
        parse(text, question, finished)
        best = min(best, (time.thread_time_ns() - started) / 1e6)
    return best


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    rng, exceptions, slowest, cold, long = random.Random(0), Counter(), (0.0, ""), 0.0, 0
    choices, times = pools(rng), []
    statuses: dict[str, Counter] = {decision: Counter() for decision in DECISIONS}
    for _ in range(count):
        texts, decision, finished = rng.choice(choices), rng.choice(DECISIONS), rng.random() < 0.8
        question = ask(decision, rng.sample(texts, rng.randint(1, len(texts))))
        text = completion(rng, texts)
        try:
            titles.as_shown.cache_clear(), titles.numerals.cache_clear(), titles.yearless.cache_clear()
            # the first completion about a pool cleans its texts for all
            cold = max(cold, milliseconds(text, question, finished, 1))
            answer = parse(text, question, finished)
            check(answer, question)
            spent = milliseconds(text, question, finished, 1)
        except Exception as error:  # each is counted, whatever it is
            exceptions[type(error).__name__] += 1
            continue
        if spent > LIMIT:
            spent = milliseconds(text, question, finished, 3)
        times.append(spent)
        long += spent > LIMIT and len(text) > 8_000
        slowest = max(slowest, (spent,
                                f"{decision}, {len(question.pool)} candidates, {len(text)} characters: {text[:60]!r}"))
        statuses[decision][answer.status] += 1
    names = sorted({status for found in statuses.values() for status in found})
    total = sum(statuses.values(), Counter())
    print(report.markdown(["", *names], [[decision, *(str(found[name]) for name in names)]
                                         for decision, found in {**statuses, "all": total}.items()]))
    print(f"\nslowest: {slowest[1]}")
    print(json.dumps({"count": count, "failures": {name: total[name] for name in names if name != "ok"},
                      "exceptions": dict(exceptions), "over_1_ms": sum(t > LIMIT for t in times),
                      "of_them_over_8_kB": long, "slowest_first_ms": round(cold, 3), "slowest_ms": round(slowest[0], 3),
                      "median_ms": round(statistics.median(times), 4)}))
    return int(bool(exceptions) or slowest[0] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
