"""What a run leaves to read: metrics.jsonl, completions.jsonl, curves.png."""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib

from ranker.data import Group
from ranker.files import open_whole, write_figure, writing


def append(path: Path, records: Sequence[dict]) -> None:
    """Append JSON lines and flush them. Where the disk is full half a line may stay, which `read` leaves out."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write("".join(line(record) for record in records))


def line(record: dict) -> str:
    """One JSON line; what is no number (a gradient norm that overflowed) becomes null, which JSON knows."""
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value):
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> Iterator[dict]:
    """The records of a log, one by one, since it may be long; a last line that a crash cut short is left out."""
    if path.exists():
        with path.open("rb") as file:  # bytes, since the cut may go through a character
            for text in filter(bytes.strip, file):
                try:
                    yield json.loads(text)
                except ValueError:
                    return


CAUSES = {"parse_rate": "a learning rate too high, a KL weight (train.beta) too low, or completions cut by rollout.max_new_tokens",
          "reward": "a learning rate too high, a KL weight (train.beta) too low, or a reward that another part works against"}


def collapse(margin: float, steps: int) -> Callable[[dict], str | None]:
    """A function that sees every step's record and gives what to announce when the parse rate or the reward has been `margin` below the best
    mean of five steps for `steps` ones; once. Steps in which nothing was scored say nothing.
    """
    best, recent = dict.fromkeys(CAUSES, -math.inf), {key: deque(maxlen=max(steps + 1, 5)) for key in CAUSES}

    def look(record: dict) -> str | None:
        for key, causes in CAUSES.items():
            value, values = record.get(key), recent[key]
            if value is None or not math.isfinite(value):
                continue
            values.append(value)
            if len(values) >= 5:
                best[key] = max(best[key], sum(list(values)[-5:]) / 5)
            low = [value < best[key] - margin for value in values][-steps - 1:]
            if low[1:] == [True] * steps and not low[0]:
                return (f"collapse: {key} was {best[key]:.2f} and has been below {best[key] - margin:.2f} for {steps} steps. Likely causes: {causes}."
                        " `best` holds the checkpoint of the best validation")
        return None

    return look


def cut_after(path: Path, step: int) -> None:
    """Keep the records up to `step`: what a resumed run is about to write again goes."""
    if path.exists():
        with open_whole(path) as file:
            file.writelines(line(r) for r in read(path) if r.get("step", step + 1) <= step)


POINTS = 2000  # of a curve
PANELS = (  # title, keys of metrics.jsonl
    ("reward, weighted", ("reward", "reward/task")),
    ("validation MRR", ()),  # one line per scenario, filled in below
    ("share of completions", ("parse_rate", "truncated")),
    ("share of completions without signal", ("dead",)),
    ("completion tokens", ("length",)),
    ("gradient norm", ("grad_norm",)),
)


def curves(folder: Path) -> None:
    """Draw `curves.png` from `metrics.jsonl`: every step faint, the mean of the last ten in full.

    Of a long run a point is the mean of several steps, so that there are at most POINTS, however long it gets.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # a second to import, and only needed here

    path = folder / "metrics.jsonl"
    with path.open("rb") as file:
        together = math.ceil(sum(1 for _ in file) / POINTS)  # steps in a point
    series, validations = {key: [] for _, keys in PANELS for key in keys}, []  # points (step, value)
    waiting = {key: [] for key in series}
    for record in read(path):
        for key, points in series.items():
            if record.get(key) is not None:
                waiting[key].append(record[key])
            if len(waiting[key]) == together:
                points.append((record["step"], sum(waiting[key]) / together))
                waiting[key].clear()
        if "validation" in record:
            validations.append((record["step"], record["validation"]))
    validations = [*validations[:-1:math.ceil(len(validations) / POINTS) or 1], *validations[-1:]]
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for axis, (title, keys) in zip(axes.flat, PANELS):
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        axis.set_xlabel("step")
        for color, key in zip(("tab:blue", "tab:orange"), keys):
            x, y = [step for step, _ in series[key]], [value for _, value in series[key]]
            smooth = [sum(y[max(0, i - 9):i + 1]) / len(y[max(0, i - 9):i + 1]) for i in range(len(y))]
            axis.plot(x, y, color=color, alpha=0.25, linewidth=1)
            axis.plot(x, smooth, color=color, label=key)
        if not keys:
            for name in validations[0][1] if validations else ():
                style = {"color": "black", "linewidth": 2.5} if name == "mean" else {}
                axis.plot([step for step, _ in validations], [found[name] for _, found in validations], marker="o", markersize=4, label=name, **style)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    write_figure(folder / "curves.png", figure)
    plt.close(figure)


def reward_means(rewards: list[list[dict[str, float]]]) -> dict[str, float]:
    """Mean of the reward and of each part over the completions that could be scored."""
    means = {}
    for name in rewards[0][0]:
        values = [r[name] for row in rewards for r in row if math.isfinite(r[name])]
        means["reward" if name == "total" else f"reward/{name}"] = sum(values) / len(values) if values else math.nan
    return means


def rollout_means(groups: list[Group]) -> dict[str, float]:
    completions = [c for g in groups for c in g.completions]
    count = len(completions)
    copies = [c.answer.value == g.ask.pool for g in groups if g.ask.decision == "order" for c in g.completions]  # a safe answer, where rewards are gains
    return {"parse_rate": sum(c.answer.ok for c in completions) / count, "truncated": sum(not c.finished for c in completions) / count,
            "length": sum(len(c.ids) for c in completions) / count, "prompt_length": sum(len(g.prompt) for g in groups) / len(groups),
            "shortened": sum(g.completions[0].cut is not None for g in groups) / len(groups),
            **({"unchanged": sum(copies) / len(copies)} if copies else {})}


def completion_records(step: int, groups: Sequence[Group], rewards: Sequence[Sequence[dict]], advantages) -> list[dict]:
    """One record a sampled completion, in the order of `advantages`: what the loss saw (0 where it took no part)."""
    advantage = iter(advantages)
    return [{"step": step, "query": group.ask.query.id, **group.ask.described(), "text": c.text,
             "tokens": len(c.ids), "finished": c.finished, "status": c.answer.status, "answer": list(c.answer.value),
             "reward": rewards[g][i], "advantage": round(next(advantage), 6), **({"cut": c.cut} if c.cut is not None else {})}
            for g, group in enumerate(groups) for i, c in enumerate(group.completions)]
