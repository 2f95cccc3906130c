"""Candidates' texts as completions: nothing is sampled, and the log-probabilities of a group are the scores of a list.

Every candidate's text stands behind the query as a completion, as the ranker `likelihood` scores it: the score is the
sum over its tokens, or with `ranker.score: mean` their mean (signal `share`: the weight of a token).
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ranker.data import Answer, Completion, Group
from ranker.errors import UserError

GIVES, EPISODES = "candidates", False


@dataclass
class Options:
    pass


def draw(source, sample, judge: Callable, state: dict, options: Options) -> list[Group]:
    ranker, prompter = sample.ranker, sample.policy.prompter
    if ranker.name != "likelihood" or ranker.options.direction == "query" or ranker.options.score == "pmi":
        raise UserError("draw.name=candidates needs ranker.name=likelihood with score sum or mean of candidates; pmi"
                        " and direction=query are for ranking")
    seed, groups = sample.seed(state), []
    for i, query in source.take(sample.rollout.prompts_per_step, state):
        [ask] = ranker.sampled_asks(query, random.Random(f"{seed}/ask/{i}"), None)
        (prompt, endings, cut), completions = prompter.scored(ask, sample.rollout.max_new_tokens), []
        for c, ids in zip(ask.pool, endings):
            completion = Completion(ids, [math.nan] * len(ids), prompter.tokenizer.decode(ids), True,
                                    Answer("ok", (c,), 1), cut=cut, cohort=i)
            weight = 1 / len(ids) if ranker.options.score == "mean" else 1.0
            completion.signals["share"] = torch.full((len(ids),), weight)
            completions.append(completion)
        groups.append(Group(ask, prompter.encode(ask), completions))
    return judge(groups)
