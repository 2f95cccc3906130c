"""Candidates' texts as completions: nothing is sampled, and the log-probabilities of a group are the scores of a list.

Every candidate's text stands behind the query as a completion, as the ranker `likelihood` scores it: the score is the
sum over its tokens, or with `ranker.score: mean` their mean (signal `share`: the weight of a token). With
`ranker.direction: query` it is the query that stands behind every candidate: the prompts of the candidates begin alike,
which is computed once, and what follows is the stem of each completion.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from os.path import commonprefix  # of any lists

import torch

from ranker.data import Answer, Completion, Group
from ranker.errors import UserError

GIVES, EPISODES = "candidates", False


@dataclass
class Options:
    pass


def draw(source, sample, judge: Callable, state: dict, options: Options) -> list[Group]:
    ranker, prompter = sample.ranker, sample.policy.prompter
    if ranker.name != "likelihood" or ranker.options.score == "pmi":
        raise UserError("draw.name=candidates needs ranker.name=likelihood with score sum or mean; pmi is for ranking")
    seed, groups = sample.seed(state), []
    for i, query in source.take(sample.rollout.prompts_per_step, state):
        asks = ranker.sampled_asks(query, random.Random(f"{seed}/ask/{i}"), None)  # one, or one a candidate
        scored = [prompter.scored(ask, sample.rollout.max_new_tokens) for ask in asks]
        pool, prompt = sum((ask.pool for ask in asks), ()), commonprefix([prompt for prompt, _, _ in scored])
        texts = [(own[len(prompt):], ids, cut) for own, endings, cut in scored for ids in endings]
        completions = []
        for c, (stem, ids, cut) in zip(pool, texts, strict=True):
            completion = Completion(ids, [math.nan] * len(ids), prompter.tokenizer.decode(ids), True,
                                    Answer("ok", (c,), 1), cut=cut, cohort=i, stem=stem)
            weight = 1 / len(ids) if ranker.options.score == "mean" else 1.0
            completion.signals["share"] = torch.full((len(ids),), weight)
            completions.append(completion)
        groups.append(Group(replace(asks[0], pool=pool), prompt, completions))
    return judge(groups)
