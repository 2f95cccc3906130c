"""Kill a short run at random moments, start it again, and see whether it ends where one ends that was never killed.

    python tests/bench/bench_kill.py [--kills 50] [--seed 0]

Every kill is SIGKILL to a fresh run, every third one in the middle of a checkpoint being written (as soon as its
temporary folder stands), the others at a moment drawn evenly from the whole duration. Then the same command is typed
again. Compared are the adapter and the optimizer, byte by byte, every metric but times and memory, and every sampled
completion; a step that stands twice in a file or a broken line is a difference. Ends with a line of JSON.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from ranker.errors import Parser, UserError, exit_status  # noqa: E402
from ranker.evaluation import report  # noqa: E402

SHORT = ["--train.steps=5", "--train.warmup=1", "--rollout.prompts_per_step=2", "--rollout.completions_per_prompt=4",
         "--rollout.max_new_tokens=64", "--eval.every=2", "--eval.queries=1", "--data.tasks=passage-5",
         "--run.save_every=1", "--model.device=cpu"]
TIMES = {"seconds", "tokens_per_second", "peak_gb"}


def main() -> None:
    parser = Parser(prog="bench_kill.py", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.kills < 1:
        raise UserError("--kills must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        found = kills(Path(folder), args.kills, args.seed)
    rows = {where: [outcome for place, outcome in found if place == where]
            for where in dict.fromkeys(place for place, _ in found)}
    print(report.markdown(["killed", "times", "ended the same"],
                          [[where, str(len(o)), str(o.count("same"))] for where, o in rows.items()]))
    different = Counter(outcome for _, outcome in found if outcome != "same")
    print(json.dumps({"kills": args.kills, "seed": args.seed, "same": sum(outcome == "same" for _, outcome in found),
                      "different": different}))
    if different:
        sys.exit(1)


def kills(folder: Path, count: int, seed: int) -> list[tuple[str, str]]:
    """(when it was killed, `same` or what differed) of each."""
    rng = random.Random(seed)
    started = time.perf_counter()
    start(folder / "whole").wait()
    seconds = time.perf_counter() - started
    wanted, found = left_behind(folder / "whole"), []
    for i in tqdm(range(count), desc="kill", unit="run", dynamic_ncols=True):
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        where = killed_saving(run, rng.randint(1, 5)) if i % 3 == 2 else killed_at(run, rng.uniform(0, seconds))
        again = start(run)
        if again.wait():
            found.append((where, f"did not go on: {again.stderr.read()[-300:]}"))
            continue
        got = left_behind(run)
        found.append((where, ", ".join(name for name in wanted if got.get(name) != wanted[name]) or "same"))
    return found


def start(run: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, ROOT / "train.py", ROOT / "configs/iranker.yaml", *SHORT,
                             f"--run.dir={run}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def killed_at(run: Path, moment: float) -> str:
    process = start(run)
    time.sleep(moment)
    process.kill()
    process.wait()
    steps = len((run / "metrics.jsonl").read_text().splitlines()) - 1 if (run / "metrics.jsonl").exists() else -1
    return "before the first step" if steps < 1 else "while training"


def killed_saving(run: Path, step: int) -> str:
    """Kill as soon as a checkpoint of `step` is begun; one that was too quick for us counts as well."""
    process = start(run)
    while (process.poll() is None
           and not any((run / "checkpoints" / name).exists() for name in (f".step_{step}.tmp", f"step_{step}"))):
        time.sleep(0.0005)
    process.kill()
    process.wait()
    return "while saving" if (run / "checkpoints" / f".step_{step}.tmp").exists() else "just after saving"


def left_behind(run: Path) -> dict[str, object]:
    """What two runs must agree on."""
    lines = lambda name: [json.loads(line)  # noqa: E731
                          for line in (run / name).read_text(encoding="utf-8").split("\n")[:-1]]
    digest = lambda name: hashlib.sha256((run / "last" / name).read_bytes()).hexdigest()  # noqa: E731
    return {"adapter": digest("adapter_model.safetensors"), "optimizer": digest("optimizer.pt"),
            "metrics": [{k: v for k, v in record.items() if k not in TIMES} for record in lines("metrics.jsonl")],
            "completions": lines("completions.jsonl"), "thoughts": lines("thoughts.jsonl"),
            "best": (run / "best").resolve().name,
            "checkpoints": sorted(p.name for p in (run / "checkpoints").iterdir())}


if __name__ == "__main__":
    sys.exit(exit_status(main))
