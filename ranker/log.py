"""The logs of a run: metrics.jsonl, completions.jsonl and curves.png; and the warnings that their records give."""

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

from ranker import credit
from ranker.data import Group
from ranker.files import open_whole, write_figure, writing


def append(path: Path, records: Sequence[dict]) -> None:
    """Append JSON lines and flush them; raise UserError where they cannot be written.

    Where the disk is full half a line may stay, which `read` leaves out.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write("".join(line(record) for record in records))


def line(record: dict) -> str:
    """Return a record as a JSON line; a float that is no number (a gradient norm that overflowed) becomes null."""
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value):
    """Return a value, or a dict or a list of values, with None for floats that are no numbers, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> Iterator[dict]:
    """Yield the records of a log, which may be long, one by one; a last line that a crash cut short is left out."""
    if path.exists():
        with path.open("rb") as file:  # as bytes, since the cut may go through a character
            for text in filter(bytes.strip, file):
                try:
                    yield json.loads(text)
                except ValueError:
                    return


CAUSES = {  # key of a record -> likely causes of its collapse
    "parse_rate": "a learning rate too high, a KL weight (objective.beta) too low, or completions cut by "
                  "rollout.max_new_tokens",
    "reward": "a learning rate too high, a KL weight (objective.beta) too low, or a reward that another part works "
              "against"}


def collapse(margin: float, steps: int) -> Callable[[dict], str | None]:
    """Return a function that takes every step's record and returns a text to announce when a run collapses, or None.

    A run collapses when the parse rate or the reward has been more than `margin` below its best mean over five steps
    for `steps` steps in a row; this is announced once. Steps in which nothing was scored do not count.
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
                return (f"collapse: {key} was {best[key]:.2f} and has been below {best[key] - margin:.2f} for {steps} "
                        f"steps. Likely causes: {causes}. `best` holds the checkpoint of the best validation")
        return None

    return look


GAP = 1e-3  # bound of `sampler_gap` where the model computes in fp32: above it sampling and scoring are two functions
GAP_BF16 = 0.1  # the bound in bf16, where rounding alone gives 0.003 to 0.024 (random models of 2 to 36 layers)
GAPS = 3  # steps in a row above the bound that end a run, since its samples are not the samples it learns from
PATIENCE = 5  # steps in a row in which a run learns nothing, before it says so
COLD_START = "a cold start (a first stage with objective.name=sft)"
SIGNS = {  # sign -> what is said of the steps that show it
    "gap": "sampling and scoring differ (sampler_gap above {bound:g}) {when}. Likely causes: attention or a head of "
           "the model's own, no plain LoRA adapter, rollout.weights=dense in bf16, a kernel (rollout.graph=false and "
           "model.attention=sdpa rule it out)",
    "truncated": "nothing is learned: every completion was cut off {when}. Remedy: more rollout.max_new_tokens, an "
                 f"instruct model (model.name, model.chat_template), or {COLD_START}",
    "unread": "nothing is learned: no answer could be read {when}. Remedy: an instruct model (model.name, "
              f"model.chat_template), or {COLD_START}",
    "dead": "nothing is learned: all groups were dead {when}. Remedy: an easier pool (fewer candidates, other "
            "data.train; a harder one where the reward is high), a lower objective.keep_above with sft, "
            f"or {COLD_START}",
    "shortened": "texts were cut in most prompts {when}. Remedy: shorter texts (data.train), or more model.max_prompt",
}
NOTHING = ("truncated", "unread", "dead")  # the most specific sign first; only the first that lasts is announced


class Signs(NamedTuple):
    """Hold the warnings that the records of a run up to now give."""

    new: list[str]  # warnings to announce now
    notes: list[str]  # all warnings announced so far, with the number of steps that showed their signs
    stop: str  # why the run must end; empty: it goes on


def watch(collapsed: Callable[[dict], str | None], bound: float) -> Callable[[dict], Signs]:
    """Return a function that takes every step's record and returns the Signs; a sign is new once as long as it lasts.

    `collapsed` is made by `collapse`; `bound` is that of `sampler_gap`.
    """
    row, held, steps = Counter(), Counter(), 0  # sign -> steps in a row that showed it; sign -> all such steps; steps
    announced, lasting, collapses = [], set(), []  # lasting: signs shown by every step since they were announced

    def said(name: str, when: str) -> str:
        return SIGNS[name].format(when=when, bound=bound)

    def look(record: dict) -> Signs:
        nonlocal steps
        steps += "parse_rate" in record  # the record of step 0 has only a validation
        for name, shown in shown_by(record, bound).items():
            row[name] = (row[name] + 1) * shown
            held[name] += shown
        lasting.intersection_update(name for name in SIGNS if row[name])
        ripe = [name for name in SIGNS if row[name] >= (1 if name == "gap" else PATIENCE)]
        general = [name for name in NOTHING if name in ripe][1:]
        new = [name for name in ripe if name not in general and name not in lasting]
        lasting.update(new)
        announced.extend(name for name in new if name not in announced)
        fallen = list(filter(None, [collapsed(record)]))
        collapses.extend(fallen)
        when = {name: f"in step {record['step']}" if name == "gap" else f"in {PATIENCE} steps in a row" for name in new}
        return Signs(fallen + [said(name, when[name]) for name in new],
                     collapses + [said(name, f"in {held[name]} of {steps} steps") for name in announced],
                     said("gap", f"in {row['gap']} steps in a row") if row["gap"] >= GAPS else "")

    return look


def shown_by(record: dict, bound: float) -> dict[str, bool]:
    """Return sign -> whether a step's record shows it; without `gap` where the gap was not measured."""
    # NaN for a missing value, since no comparison with NaN holds.
    value = lambda key: math.nan if record.get(key) is None else record[key]  # noqa: E731
    shown = {"truncated": value("truncated") == 1, "unread": value("parse_rate") == 0,
             # Where no completion could be scored (reward is NaN) groups are dead for another reason.
             "dead": value("dead") == 1 and value("parse_rate") > 0 and not math.isnan(value("reward")),
             "shortened": value("shortened") > 0.5}
    return shown if math.isnan(value("sampler_gap")) else shown | {"gap": value("sampler_gap") > bound}


def standing(record: dict) -> tuple[float, float]:
    """Return the key by which `best` is chosen: a validation's strict mean, and for equal strict means its repaired.

    By the repaired mean a policy without readable answers could win: its fallback may keep the order of a good first
    stage.
    """
    validation = record.get("validation", {})
    return validation.get("mean_strict", -math.inf), validation.get("mean", -math.inf)


def cut_after(path: Path, step: int) -> None:
    """Remove the records after `step`, which a resumed run is about to write again."""
    if path.exists():
        with open_whole(path) as file:
            file.writelines(line(r) for r in read(path) if r.get("step", step + 1) <= step)


POINTS = 2000  # points of a curve at most
PANELS = (  # title, keys of metrics.jsonl; one without a number is not drawn
    ("reward, weighted", ("reward", "reward/task")),
    ("training lists", ("mrr", "drawn_reward")),  # where texts are scored
    ("validation MRR", ()),  # a line per scenario, whose names are in the records
    ("loss of lists", ("rank_loss", "kl_label")),
    ("share of completions", ("parse_rate", "truncated")),
    ("share of groups that are dead", ("dead",)),
    ("completion tokens", ("length",)),
    ("gradient norm", ("grad_norm",)),
    ("entropy, nats a token", ("entropy",)),
    ("KL to the reference, nats a token", ("kl",)),
)
OF_SAMPLES = {"reward", "parse_rate", "dead", "length"}  # say nothing of candidates' texts, which are as they are


def curves(folder: Path) -> None:
    """Draw `curves.png` from `metrics.jsonl`: every point faint, the mean of the last ten points in full.

    Dotted lines are baselines of the validation queries, which the record of step 0 holds.
    A point is a step, or in a long run the mean of several steps, so that a curve has about POINTS points at most.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # takes a second to import, and is only needed here

    path = folder / "metrics.jsonl"
    with path.open("rb") as file:
        together = math.ceil(sum(1 for _ in file) / POINTS)  # steps in a point
    series, validations, floors = {key: [] for _, keys in PANELS for key in keys}, [], {}  # points (step, value)
    waiting = {key: [] for key in series}
    for record in read(path):
        for key, points in series.items():
            if record.get(key) is not None:
                waiting[key].append(record[key])
            if len(waiting[key]) == together:
                points.append((record["step"], sum(waiting[key]) / together))
                waiting[key].clear()
        floors |= record.get("baselines", {})
        if "validation" in record:
            validations.append((record["step"], record["validation"]))
    validations = [*validations[:-1:math.ceil(len(validations) / POINTS) or 1], *validations[-1:]]
    scored = series["mrr"] or series["drawn_reward"]
    panels = [(title, keys) for title, keys in PANELS
              if not keys or any(series[key] for key in keys) and not (scored and OF_SAMPLES & {*keys})]
    columns = max(-(-len(panels) // 2), 2)
    figure, axes = plt.subplots(2, columns, figsize=(3.75 * columns, 6), layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis, (title, keys) in zip(axes.flat, panels):
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        axis.set_xlabel("step")
        for color, key in zip(("tab:blue", "tab:orange"), (key for key in keys if series[key])):
            x, y = [step for step, _ in series[key]], [value for _, value in series[key]]
            smooth = [sum(y[max(0, i - 9):i + 1]) / len(y[max(0, i - 9):i + 1]) for i in range(len(y))]
            axis.plot(x, y, color=color, alpha=0.25, linewidth=1)
            axis.plot(x, smooth, color=color, label=key)
        if not keys:
            for name in validations[0][1] if validations else ():
                style = {"color": "black", "linewidth": 2.5} if name == "mean" else {}
                axis.plot([step for step, _ in validations], [found[name] for _, found in validations], marker="o",
                          markersize=4, label=name, **style)
            for name, shade in zip(floors, ("0.6", "0.3")):
                axis.axhline(floors[name], color=shade, linestyle=":", label=name)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    write_figure(folder / "curves.png", figure)
    plt.close(figure)


def reward_means(groups: Sequence[Group]) -> dict[str, float]:
    """Return the mean of the reward and of each of its parts over the completions that could be scored."""
    rewards, means = [c.rewards for c in credit.sampled(groups)], {}
    for name in rewards[0]:
        values = [r[name] for r in rewards if math.isfinite(r[name])]
        means["reward" if name == "total" else f"reward/{name}"] = sum(values) / len(values) if values else math.nan
    return means


def rollout_means(groups: Sequence[Group]) -> dict[str, float]:
    """Return means over a step's completions that do not depend on rewards: parse rate, lengths, entropy and so on.

    `entropy`, in nats per token, is the mean of -log p of the sampled tokens: sampling gives it at no cost, and it is
    an unbiased estimate of the entropy of the distributions sampled from, at `rollout.temperature`. Recorded traces
    have no entropy.
    """
    completions = credit.sampled(groups)
    count = len(completions)
    surprise = [-p for c in completions for p in c.logprobs if not math.isnan(p)]
    # An order that repeats the pool as shown is a safe answer where the reward is a gain over the order shown.
    copies = [c.answer.value == g.ask.pool for g in groups if g.ask.decision == "order" for c in g.completions]
    return {
        "parse_rate": sum(c.answer.ok for c in completions) / count,
        "truncated": sum(not c.finished for c in completions) / count,
        "length": sum(len(c.ids) for c in completions) / count,
        "prompt_length": sum(len(g.prompt) + sum(len(c.stem) for c in g.completions) for g in groups) / len(groups),
        "shortened": sum(g.completions[0].cut is not None for g in groups) / len(groups),
        **({"entropy": sum(surprise) / len(surprise)} if surprise else {}),
        **({"unchanged": sum(copies) / len(copies)} if copies else {})}


def completion_records(step: int, groups: Sequence[Group]) -> list[dict]:
    """Return a record per completion: its ask, text, answer, rewards, and advantage (0 where it teaches nothing)."""
    return [{"step": step, "query": group.ask.query.id, **group.ask.described(), "text": c.text,
             "tokens": len(c.ids), "finished": c.finished, "status": c.answer.status, "answer": list(c.answer.value),
             "reward": c.rewards, "advantage": round(c.advantage, 6), **({"cut": c.cut} if c.cut is not None else {}),
             **({"sampled": False} if not c.sampled else {})}
            for group in groups for c in group.completions]
