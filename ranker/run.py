"""What a run keeps: its folder, checkpoints, logs and best; what it says while it runs, and how it goes on or ends."""

import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ranker import checkpoint, config as settings, log, thoughts, tracker
from ranker.data import Group, Query
from ranker.engine import distributed, memory
from ranker.engine.policy import Policy
from ranker.errors import UserError
from ranker.evaluation import baselines, report
from ranker.provenance import interpreter, provenance
from ranker.rewarding import Part

LOGS = ("metrics.jsonl", "completions.jsonl", "thoughts.jsonl")
REDRAW = 60  # seconds between two drawings of the curves; they are drawn after every validation too


class Run:
    """A run folder and where its run stands. Of several processes the first alone writes."""

    def __init__(self, config: settings.Config, chat: str, fresh: bool = False, dry: bool = False):
        """Find out where to go on; `chat` is the version of the chat template. Write nothing. Raise UserError."""
        tracker.check(config.run.log)
        self.config, self.fresh, self.chat = config, fresh, chat
        self.folder = Path(config.run.dir)
        done = 0 if dry else checkpoint.inspect_run(config, fresh, chat)
        self.finished, self.done = done is None, done or 0
        self.checkpoint = self.folder / "last" if self.done else None
        self.state = checkpoint.describe(self.checkpoint)["state"] if self.done else {}  # of draws
        self.first, self.broken, self.stopped_by = distributed.first(), 0, []

    def say_finished(self) -> int:
        longer = "   Go on: a larger --train.steps" if self.config.train.schedule == "constant" else ""
        print(f"{self.folder} is finished. Evaluate it: {interpreter()} evaluate.py --ckpt {self.folder}/best"
              f"{longer}   Train anew: add --fresh")
        return 0

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        """Load what stands beside the adapter of the checkpoint that the run goes on from."""
        if self.checkpoint:
            checkpoint.restore(self.checkpoint, policy, optimizer)

    def begin(self, policy: Policy, plan: memory.Plan, data: Sequence[str]) -> None:
        """Make the folder, or take it up where its last checkpoint stands."""
        distributed.wait()  # until all have read what stands there
        if self.first:
            record = provenance(self.config, policy.device, data, self.chat)
            self.held = checkpoint.start_run(self.config, self.fresh, record)
            for name in LOGS:  # what a crash left behind the last checkpoint is written again
                log.cut_after(self.folder / name, self.done or -1)
            print(plan.outlook())
            if self.done:
                print(f"resuming {self.folder} after step {self.done}")
        distributed.wait()
        train, bf16 = self.config.train, policy.head.weight.dtype == torch.bfloat16
        self.watch = log.watch(log.collapse(train.collapse_margin, train.collapse_steps),
                               log.GAP_BF16 if bf16 else log.GAP)
        self.best = log.standing({})
        for record in log.read(self.folder / "metrics.jsonl"):  # of the run that goes on
            self.watch(record)
            if record["step"]:  # of trained ones
                self.best = max(self.best, log.standing(record))
        self.track = tracker.tracker(self.config, self.folder, self.done) if self.first else None
        self.drawn = time.monotonic()  # when the curves were drawn last
        self.stopped_by = catch_signals()

    def first_validation(self, found: dict[str, float], queries: Sequence[Query]) -> None:
        """Log how the policy ranks the validation queries before it is trained, beside random order and BM25."""
        if self.first:
            floors = report.baseline_rows([queries], self.config.eval.relevance_level, ["MRR"],
                                          {"BM25": baselines.bm25})
            record = {"step": 0, "validation": found, "baselines": {row.name: row.mean("MRR") for row in floors}}
            log.append(self.folder / "metrics.jsonl", [record])
            self.track(record)
            self.tell(record)

    def tell(self, record: dict) -> None:
        """Print what a validation found."""
        tqdm.write(f"step {record['step']}: validation MRR {record['validation']['mean']:.3f}" + "".join(
            f", {name} {value:.3f}" for name, value in record.get("baselines", {}).items()))

    def steps(self) -> Iterator[int]:
        """Yield the steps that are left, with a progress bar where there is a terminal."""
        total = self.config.train.steps
        self.bar = tqdm(range(self.done + 1, total + 1), desc="train", unit="step", initial=self.done, total=total,
                        dynamic_ncols=True, disable=hidden())
        yield from self.bar

    def costs(self, groups: Sequence[Group], seconds: float, plan: memory.Plan) -> dict[str, float]:
        """Return what a step cost; show how the memory of the first one compares with the plan."""
        if not hasattr(self, "measured") and self.first:
            self.measured = plan.table()
            tqdm.write(self.measured)
        tokens = sum(len(c.ids) for group in groups for c in group.completions)
        return {"seconds": seconds, "peak_gb": max(plan.measured.values()) / 1e9, "tokens_per_second": tokens / seconds}

    def show(self, record: dict, rewards: Sequence[Part]) -> None:
        """Write the line people watch: in the bar, and as a line of its own where the output is no terminal.

        With one update per rollout the loss is about zero by construction: left out.
        """
        parts = {p.name: f"{record[f'reward/{p.name}']:.2f}" for p in rewards}
        kl = {"kl": f"{record['kl']:.4f}"} if "kl" in record else {}
        lists = {name: f"{record[name]:.3f}" for name in ("mrr", "drawn_reward") if name in record}  # of scored lists
        found = {"reward": f"{record['reward']:.3f}", **parts, **lists,
                 "parsed": f"{record['parse_rate']:.0%}", "dead": f"{record['dead']:.0%}",
                 "len": f"{record['length']:.0f}", **kl, "tok/s": f"{record['tokens_per_second']:.0f}"}
        self.bar.set_postfix(found)
        if self.first and not sys.stdout.isatty():
            print(f"step {record['step']}/{self.config.train.steps} ", *(f"{k}={v}" for k, v in found.items()),
                  f"{record['seconds']:.1f} s", flush=True)

    def keep(self, record: dict, groups: Sequence[Group], policy: Policy,
             optimizer: torch.optim.Optimizer) -> int | None:
        """Log a step and save what is due. Return the exit status where the run was told to stop.

        Raise UserError where it must not go on; its last checkpoint is saved.
        """
        step, train = record["step"], self.config.train
        record["bad"] = int(not math.isfinite(record["grad_norm"]))
        if record["dead"] < 1:  # a step that learned nothing says nothing
            self.broken = (self.broken + 1) * record["bad"]
        last, gone_bad = step == train.steps, self.broken == train.max_bad_steps
        improved, self.best = log.standing(record) > self.best, max(self.best, log.standing(record))
        signs = self.watch(record)
        stop = max(distributed.gather(self.stopped_by[0] if self.stopped_by else 0))
        if self.first:
            log.append(self.folder / "completions.jsonl", log.completion_records(step, groups))
            log.append(self.folder / "thoughts.jsonl", thoughts.kept(step, groups))
            log.append(self.folder / "metrics.jsonl", [record])
            self.track(record)
            for sign in signs.new:
                tqdm.write(sign)
            if "validation" in record:
                self.tell(record)
            if "validation" in record or time.monotonic() - self.drawn > REDRAW:
                log.curves(self.folder)
                self.drawn = time.monotonic()
            if improved or last or stop or gone_bad or signs.stop or step % self.config.run.save_every == 0:
                scores = record.get("validation", {})
                checkpoint.save(self.config, policy, optimizer, step, scores, improved, signs.notes, self.state)
        self.notes = signs.notes
        if gone_bad:
            raise UserError(f"the gradient was not finite in {self.broken} steps in a row (the last is {step}), which"
                            f" changed nothing; {self.folder}/last is saved; "
                            "begin anew with a lower train.lr, or look at"
                            " the rewards in completions.jsonl")
        if signs.stop:
            raise UserError(f"{signs.stop}; {self.folder}/last is saved")
        if stop and not last:
            self.bar.close()
            if self.first:
                print(f"stopped after step {step}; the same command goes on from there")
            return 128 + stop

    def finish(self) -> None:
        """Print the before and after table, what was announced of the run, and what to type next."""
        if self.first:
            self.held.close()
            records = [r for r in log.read(self.folder / "metrics.jsonl") if "validation" in r]
            first, top = records[0], max(records[1:], key=log.standing)
            rows = [("before training", first), (f"best, step {top['step']}", top),
                    (f"last, step {records[-1]['step']}", records[-1])]
            columns = list(first["validation"])
            print(f"\nMRR on the validation queries (at most {self.config.eval.queries} per task), greedy decoding:\n")
            print(report.markdown(
                ["", *columns], [[name, *(f"{r['validation'][c]:.3f}" for c in columns)] for name, r in rows]))
            for note in self.notes:
                print(f"\nWARNING {note}")
            print(f"\ncurves: {self.folder}/curves.png   next: {interpreter()} evaluate.py --ckpt {self.folder}/best")
        distributed.wait()


def hidden() -> bool:
    """Return whether this process shows no bars: another than the first, or one that writes to no terminal."""
    return not (distributed.first() and sys.stderr.isatty())


def catch_signals() -> list[int]:
    """Return a list that holds the signal once one came: the step is finished and saved. A second one ends at once."""
    caught: list[int] = []

    def note(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        tqdm.write("finishing this step, then saving; once more to stop at once")

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return caught
