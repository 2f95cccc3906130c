"""Does a long run grow? `python tests/bench/bench_soak.py [--minutes 30] [--every 5]`

One process of train.py on the built-in policy takes many short steps, with a validation, a drawing of the curves and a
checkpoint every twenty. From outside, every few seconds: its resident memory and its open files (from /proc, so on
Linux). The first quarter, in which caches fill, is left out: growth is the median of the last quarter against that of
the second. Ends with a line of JSON; exit status 1 for a growth of 2% or more.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ranker.errors import Parser, UserError, exit_status  # noqa: E402
from ranker.evaluation import report  # noqa: E402

SHORT = ["--train.steps=1000000", "--train.warmup=1", "--rollout.prompts_per_step=2",
         "--rollout.completions_per_prompt=2", "--rollout.max_new_tokens=16", "--eval.every=20", "--eval.queries=1",
         "--data.tasks=passage-5,rec-movie", "--run.save_every=20", "--model.device=cpu"]
LIMIT = 2.0  # percent


def main() -> int:
    parser = Parser(prog="bench_soak.py", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=5, help="seconds between two looks")
    args = parser.parse_args()
    if min(args.minutes, args.every) <= 0 or args.minutes * 60 < 8 * args.every:
        raise UserError("--minutes must leave time for eight looks, one --every so many seconds")
    with tempfile.TemporaryDirectory() as folder:
        run, output = Path(folder) / "run", Path(folder) / "output"
        process = subprocess.Popen([sys.executable, ROOT / "train.py", ROOT / "configs/iranker.yaml", *SHORT,
                                    f"--run.dir={run}"], stdout=output.open("w"), stderr=subprocess.STDOUT,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            looks = watched(process, run, args.minutes * 60, args.every)
        except UserError as error:
            raise UserError(f"{error}: {output.read_text()[-200:]}") from None
        finally:
            process.kill()
            process.wait()
    shown = looks[::max(len(looks) // 20, 1)]
    print(report.markdown(["seconds", "steps", "MB", "files"],
                          [[f"{t:.0f}", str(steps), f"{mb:.1f}", str(files)] for t, steps, mb, files in shown]))
    quarter = len(looks) // 4
    early, late = (statistics.median(mb for _, _, mb, _ in part)
                   for part in (looks[quarter:2 * quarter], looks[-quarter:]))
    growth = 100 * (late / early - 1)
    files = [files for *_, files in looks[quarter:]]
    print(json.dumps({"minutes": args.minutes, "steps": looks[-1][1], "mb": round(late, 1),
                      "growth_percent": round(growth, 2),
                      "files": files[-1], "files_min": min(files), "files_max": max(files)}))
    return int(growth >= LIMIT)


def watched(process: subprocess.Popen, run: Path, seconds: float, every: float) -> list[tuple[float, int, float, int]]:
    """(seconds since the first step, steps, resident MB, open files) of every look."""
    looks, started = [], None
    while started is None or time.perf_counter() - started < seconds:
        time.sleep(every)
        if process.poll() is not None:
            raise UserError("the run ended")
        steps = sum(1 for _ in (run / "metrics.jsonl").open("rb")) - 1 if (run / "metrics.jsonl").exists() else 0
        if steps < 1:
            continue
        started = started or time.perf_counter()
        status = Path(f"/proc/{process.pid}/status").read_text()
        kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        looks.append((time.perf_counter() - started, steps, kilobytes / 1000,
                      len(os.listdir(f"/proc/{process.pid}/fd"))))
    return looks


if __name__ == "__main__":
    sys.exit(exit_status(main))
