"""A trained ranker in a PyTerrier pipeline:

    from ranker import load
    from ranker.terrier import Reranker
    pipeline = (bm25 % 20) >> pt.text.get_text(dataset, "text") >> Reranker(load("runs/iranker/best"))

It takes and returns PyTerrier's frames: qid, query, docno and a column of texts in; `score` and `rank` anew.
"""

import pandas as pd
import pyterrier as pt

from ranker.errors import UserError
from ranker.use import Reranker as Loaded


class Reranker(pt.Transformer):
    """Reorders the documents of each query, all queries at once. Documents stand in the order of `rank`, if any.

    `score` falls from the number of documents to 1 in whole steps: not every ranker gives scores, and those that do
    give them per query.
    """

    def __init__(self, loaded: Loaded, text: str = "text", task: str = "rank"):
        super().__init__()
        self.loaded, self.text, self.task = loaded, text, task

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        for column in ("qid", "query", "docno", self.text):
            if column not in frame.columns:
                raise UserError(f"the frame has no column '{column}' (it has {', '.join(map(str, frame.columns))})")
        if frame.empty:
            return frame.assign(score=pd.Series(dtype=float), rank=pd.Series(dtype=int))
        frame = frame.sort_values("rank", kind="stable") if "rank" in frame.columns else frame
        groups = [group for _, group in frame.groupby("qid", sort=False)]
        found = self.loaded.rank([group["query"].iloc[0] for group in groups],
                                 [group[self.text].tolist() for group in groups], task=self.task)
        ordered = []
        for group, ranked in zip(groups, found):
            count = len(ranked)
            ordered.append(group.iloc[[r.index for r in ranked]].assign(
                score=[float(count - i) for i in range(count)], rank=range(count)))
        return pd.concat(ordered).reset_index(drop=True)
