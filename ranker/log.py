"""What a run leaves to read: metrics.jsonl, completions.jsonl, curves.png."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from ranker.data import Group
from ranker.files import write_bytes, write_text, writing


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


def read(path: Path) -> list[dict]:
    """The records of a log; a last line that a crash cut short is left out."""
    records = []  # bytes, since the cut may go through a character; split at "\n" alone: splitlines() would also cut at U+2028 inside a text
    for text in filter(None, path.read_bytes().split(b"\n")) if path.exists() else ():
        try:
            records.append(json.loads(text))
        except ValueError:
            break
    return records


CAUSES = {"parse_rate": "a learning rate too high, a KL weight (train.beta) too low, or completions cut by rollout.max_new_tokens",
          "reward": "a learning rate too high, a KL weight (train.beta) too low, or a reward that another part works against"}


def collapse(history: Sequence[dict], margin: float, steps: int) -> str | None:
    """What to announce where the parse rate or the reward was `margin` below the best mean of five steps for the last `steps` ones.

    Said once: when the last step makes them enough.
    """
    for key, causes in CAUSES.items():
        values = [r[key] for r in history if r.get(key) is not None and math.isfinite(r[key])]  # of steps in which something was scored
        best = max((sum(values[i - 5:i]) / 5 for i in range(5, len(values) + 1)), default=-math.inf)
        low = [value < best - margin for value in values]
        if all(low[-steps:]) and len(low) > steps and not low[-steps - 1]:
            return (f"collapse: {key} was {best:.2f} and has been below {best - margin:.2f} for {steps} steps. Likely causes: {causes}."
                    " `best` holds the checkpoint of the best validation")
    return None


def cut_after(path: Path, step: int) -> None:
    """Keep the records up to `step`: what a resumed run is about to write again goes."""
    if path.exists():
        kept = [r for r in read(path) if r.get("step", step + 1) <= step]
        write_text(path, "".join(map(line, kept)))


PANELS = (  # title, keys of metrics.jsonl
    ("reward, weighted", ("reward", "reward/task")),
    ("validation MRR", ()),  # one line per scenario, filled in below
    ("share of completions", ("parse_rate", "truncated")),
    ("share of completions without signal", ("dead",)),
    ("completion tokens", ("length",)),
    ("gradient norm", ("grad_norm",)),
)


def curves(folder: Path) -> None:
    """Draw `curves.png` from `metrics.jsonl`: every step faint, the mean of the last ten in full."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # a second to import, and only needed here

    records = read(folder / "metrics.jsonl")
    steps = [r for r in records if "reward" in r]
    evaluations = [r for r in records if "validation" in r]
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for axis, (title, keys) in zip(axes.flat, PANELS):
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        axis.set_xlabel("step")
        for color, key in zip(("tab:blue", "tab:orange"), keys):
            x = [r["step"] for r in steps if r.get(key) is not None]
            y = [r[key] for r in steps if r.get(key) is not None]
            smooth = [sum(y[max(0, i - 9):i + 1]) / len(y[max(0, i - 9):i + 1]) for i in range(len(y))]
            axis.plot(x, y, color=color, alpha=0.25, linewidth=1)
            axis.plot(x, smooth, color=color, label=key)
        if not keys:
            x = [r["step"] for r in evaluations]
            for name in evaluations[0]["validation"] if evaluations else ():
                style = {"color": "black", "linewidth": 2.5} if name == "mean" else {}
                axis.plot(x, [r["validation"][name] for r in evaluations], marker="o", markersize=4, label=name, **style)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_bytes(folder / "curves.png", buffer.getvalue())


def completion_records(step: int, groups: Sequence[Group], rewards: Sequence[Sequence[dict]], advantages) -> list[dict]:
    """One record a sampled completion, in the order of `advantages`: what the loss saw (0 where it took no part)."""
    advantage = iter(advantages)
    return [{"step": step, "query": group.ask.query.id, **group.ask.described(), "text": c.text,
             "tokens": len(c.ids), "finished": c.finished, "status": c.answer.status, "answer": list(c.answer.value),
             "reward": rewards[g][i], "advantage": round(next(advantage), 6), **({"cut": c.cut} if c.cut is not None else {})}
            for g, group in enumerate(groups) for i, c in enumerate(group.completions)]
