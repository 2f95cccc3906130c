"""Disturb every write of a short run, of an evaluation and of a preparation, type the command again, and see whether it
ends where one ends that nothing disturbed. `python tests/bench/bench_disk.py [--every 1] [--first 1]` (some seven
minutes on one core; --every 5 disturbs every fifth write).

From a write on, the disk is full (half of it goes through, and only deleting works), or read-only (nothing works), or
the process is killed in its middle. A write is a file opened, written to or renamed, a folder, a link, something
deleted. What must hold stands in `tests/test_survive.py`: one line with exit status 2, a last checkpoint that loads,
and after the second command the same adapter, optimizer, metrics and completions, or the same tables and traces.
Validation and the drawing of curves are left out of the run, which they would only make longer. Ends with a line of
JSON.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from test_survive import places, scripts, start, typed_again  # noqa: E402
from tqdm import tqdm  # noqa: E402

from ranker import config as settings, plugins  # noqa: E402
from ranker.engine import policy  # noqa: E402
from ranker.errors import Parser, UserError, exit_status  # noqa: E402
from ranker.evaluation import report  # noqa: E402

HOW = ("full", "read-only", "killed")


def main() -> int:
    parser = Parser(prog="bench_disk.py", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="disturb every N-th write")
    parser.add_argument("--first", type=int, default=1, help="beginning with this one")
    args = parser.parse_args()
    if min(args.every, args.first) < 1:
        raise UserError("--every and --first must be at least 1")
    # Imported and read once, for all children.
    policy.load(settings.Model(device="cpu"), plugins.load("lora", {"name": "lora"}))
    found: dict[tuple[str, str], list[str]] = {}  # script, how -> what became of each disturbed write
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for name, script in scripts(Path(folder) / "files", out).items():
            shutil.rmtree(out, ignore_errors=True)
            status, errors, writes = start(out, *script[:2])
            if status:
                raise UserError(f"the {name} does not end by itself: {errors}")
            expected = script[2](out)
            for how in HOW:
                for first in tqdm(places(writes, how)[args.first - 1::args.every], desc=f"{name}, {how}", unit="write",
                                  dynamic_ncols=True):
                    try:
                        outcome = "same" if typed_again(script, out, how, first) == expected else "another end"
                    except Exception as error:  # whatever went wrong is counted, and said where
                        outcome = f"{type(error).__name__} {str(error)[:200]}"
                    found.setdefault((name, how), []).append(outcome if outcome == "same"
                                                             else f"{writes[first - 1]}: {outcome}")
    print(report.markdown(["", "disturbed", "ended the same"],
                          [[f"{name}, {how}", str(len(o)), str(o.count("same"))] for (name, how), o in found.items()]))
    different = [outcome for outcomes in found.values() for outcome in outcomes if outcome != "same"]
    print("\n".join(different))
    print(json.dumps({"every": args.every, "first": args.first, "disturbed": sum(map(len, found.values())),
                      "different": len(different)}))
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(exit_status(main))
