"""Identifiers as completions: nothing is sampled (FIRST, arXiv 2406.15657).

Every candidate of a list has a completion of one token, its identifier where an answer begins, so the log-probabilities
of a group are the list's scores. The right order, written there, is one more completion without a reward.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ranker import llms
from ranker.data import Answer, Completion, Group
from ranker.errors import UserError

GIVES, EPISODES = "candidates", False


@dataclass
class Options:
    pass


def draw(source, sample, judge: Callable, state: dict, options: Options) -> list[Group]:
    seed, prompter, groups = sample.seed(state), sample.policy.prompter, []
    for i, query in source.take(sample.rollout.prompts_per_step, state):
        ask = replace(sample.ranker.sampled_asks(query, random.Random(f"{seed}/ask/{i}"), None)[0], by_logits=True)
        if ask.decision != "order":
            raise UserError(f"draw.name=identifiers needs a ranker that asks for an order, not {sample.ranker.name},"
                            f" which asks to {ask.decision}")
        [(_, right)] = llms.scripted(llms.right_answer)([ask])
        text, written = prompter.written_answer([ask.pool.index(c) + 1 for c in right.answer.value])
        prompt, cut = prompter.fitted(ask)
        completions = [Completion([token], [math.nan], f"[{prompter.identifier(k)}]", True,
                                  Answer("ok", (ask.pool[k - 1],), 1), cut=cut, cohort=i)
                       for k, token in enumerate(prompter.identifier_tokens(len(ask.pool)), 1)]
        completions.append(Completion(written, [math.nan] * len(written), text, True, right.answer, cohort=i))
        groups.append(Group(ask, prompt, completions))
    return judge(groups)
