"""What every ranker costs on real queries, and what it makes of perfect answers:
`python tests/bench/bench_family.py [--data ../shared/data]`.

TREC DL19, 43 queries with BM25's hundred passages each. An oracle, who knows the judgements, stands behind each ranker;
beside them stand BM25's own order and four recorded runs of sliding windows, replayed (rank_llm's; H and J stop at
depth 20). Shown: nDCG@10 over all judged passages, calls and passages read a query. Ends with one line of JSON.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ranker import answers, llms, trec_files  # noqa: E402
from ranker.drive import Ranking, load_ranker, run  # noqa: E402
from ranker.errors import Parser, UserError, exit_status  # noqa: E402
from ranker.evaluation import foreign, report  # noqa: E402

RANKERS = {
    "elimination": {}, "elimination, 10 at once": {"drop": 10}, "listwise": {},
    "sliding 20/10": {}, "sliding 10/5": {"window": 10, "step": 5}, "first 20/10": {}, "setwise, 19 children": {},
    "setwise, 2 children": {"children": 2}, "pointwise": {"score": "written"}}
RECORDED = {"RankVicuna": ("A_rankvicuna_dl19", 0), "Vicuna 7B, zero-shot": ("D_vicuna7b_zeroshot_dl19", 0),
            "RankVicuna, depth 20": ("H_rankvicuna_top20_dl19", 20),
            "Vicuna 7B, step 800, depth 20": ("J_vicuna7b_ckpt800_top20_dl19", 20)}


def main() -> None:
    parser = Parser(prog="bench_family.py", description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data",
                        help="the folder of trec_dl_bm25 and rankllm_replay")
    args = parser.parse_args()
    source = args.data / "trec_dl_bm25"
    if not source.is_dir():
        raise UserError(f"{source} is not there; --data FOLDER says where it is")
    qrels = trec_files.read_qrels(source / "qrels.dl19-passage.txt.gz")
    texts = foreign.read_corpus(source / "retrieve_results_dl19_bm25_top100.json.gz")
    queries, judged, _ = foreign.queries(trec_files.read_run(source / "run.dl19.bm25_top100.txt.gz", "input"), qrels,
                                         texts, str(source))
    rows = [row("BM25", [Ranking(query=q, order=list(q.ids)) for q in queries], judged)]
    for name, (file, depth) in RECORDED.items():
        model = llms.replay(args.data / "rankllm_replay" / f"{file}.responses.jsonl.gz", answers.parse_recorded)
        rows.append(ranked(name, {"name": "sliding", "depth": depth}, queries, model, judged))
    for name, options in RANKERS.items():
        section = {"name": name.split()[0].strip(",")} | options
        rows.append(ranked(f"oracle: {name}", section, queries, llms.scripted(llms.right_answer), judged))
    print(report.markdown(["DL19, BM25's hundred", "nDCG@10", "calls a query", "passages read"],
                          [[name, f"{quality:.3f}", f"{calls:.1f}", f"{read:.0f}"]
                           for name, quality, calls, read in rows]))
    print(json.dumps({name: {"nDCG@10": quality, "calls": calls, "passages": read}
                      for name, quality, calls, read in rows}))


def ranked(name: str, section: dict, queries, model, judged) -> tuple[str, float, float, float]:
    pools = []
    rankings = run(load_ranker(section), queries, model,
                   on_ask=lambda ask, turn, completion: pools.append(len(ask.pool)))
    return row(name, rankings, judged, sum(pools))


def row(name: str, rankings: list[Ranking], judged, read: int = 0) -> tuple[str, float, float, float]:
    quality = report.model_row(name, [rankings], 1.0, names=["nDCG@10"], judged=judged).mean("nDCG@10")
    return name, quality, sum(r.calls for r in rankings) / len(rankings), read / len(rankings)


if __name__ == "__main__":
    sys.exit(exit_status(main))
