"""`python -m ranker.prepare NAME DIR --out FILE [--seed N]`: NAME is a file in this folder with `prepare(folder, seed)`."""

import logging
import sys
from importlib import import_module
from pathlib import Path

from ranker.data import write_queries
from ranker.errors import Parser, UserError, exit_status, nearest
from ranker.files import sha256

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def main() -> None:
    parser = Parser(prog="python -m ranker.prepare", description=__doc__)
    parser.add_argument("name", help=", ".join(NAMES))
    parser.add_argument("folder", type=Path, help="the raw files")
    parser.add_argument("--out", type=Path, required=True, help="the JSON lines file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled candidates and their order")
    args = parser.parse_args()
    if args.name not in NAMES:
        raise UserError(f"unknown data set '{args.name}'{nearest(args.name, NAMES)}")
    queries, dropped = import_module(f"ranker.prepare.{args.name}").prepare(args.folder, args.seed)
    if not queries:
        raise UserError(f"{args.folder}: no query came out of it; dropped: {dropped}")
    write_queries(args.out, queries)
    print(f"{args.out}: {len(queries)} queries, {sum(len(q.ids) for q in queries)} candidates,"
          f" {sum(len(q.positives) for q in queries)} positives, sha256 {sha256(args.out)[:16]}")
    for reason, count in dropped.items():
        print(f"  dropped {count}: {reason}")
    print(f"next: python train.py configs/iranker.yaml --data.train={args.out} --run.dir=runs/{args.out.stem}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(exit_status(main))
