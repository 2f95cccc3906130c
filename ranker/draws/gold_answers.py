"""Thoughts of the policy, each with the right answers behind it, for LaTRO (arXiv 2411.04282).

A thought is what the policy sampled up to where its answer opens, tag included (so that stopping is learned); what it
answered does not count, and nothing is parsed. The group of an ask holds its thoughts and, behind each thought that
came to an end, all right answers, which continue it: prompt and thoughts are computed once. Where the answer does not
begin with a token of its own, or the tag is not learned, the answers behind a thought are a group whose prompt is the
ask's with the thought. A completion that ended without an answer has the tag added, unscored; one that the token limit
cut before its answer has no answers behind it.
"""

import math
import random
from dataclasses import dataclass

from ranker import answers, plugins
from ranker.asking import tokens_within, written
from ranker.data import Answer, Ask, Completion, Group
from ranker.engine.policy import STOP
from ranker.errors import UserError

GIVES, EPISODES = "thoughts", False
OPENING = "<answer>"


@dataclass
class Options:
    stop: bool = True  # whether the tag that ends a thought is learned with it; the released code cuts it off


def draw(source, sample, judge, state: dict, options: Options) -> list[Group]:
    if not sample.policy.prompter.think:
        raise UserError("draw.name=gold_answers rewards thoughts, and model.think=false asks for none")
    seed = sample.seed(state)
    queries = source.take(sample.rollout.prompts_per_step, state)
    asks = [sample.ranker.sampled_asks(query, random.Random(f"{seed}/ask/{i}"), None)[0] for i, query in queries]
    groups = []
    for i, group in enumerate(sample(asks, sample.rollout.completions_per_prompt, [seed + i for i, _ in queries])):
        thoughts, answered, others = [], [], []
        for k, completion in enumerate(group.completions):
            thought, context, text = cut(sample.policy, completion, options.stop)
            thought.cohort = i
            thoughts.append(thought)
            if thought.finished:
                golds = gold(sample.policy, group.ask, text, (i, k))
                if context == thought.ids:
                    for c in golds:
                        c.behind = thought
                    answered += golds
                else:
                    others.append(Group(group.ask, group.prompt + context, golds))
        groups += [Group(group.ask, group.prompt, thoughts + answered), *others]
    return judge(groups)


def cut(policy, completion: Completion, stop: bool = True) -> tuple[Completion, list[int], str]:
    """Return the thought of a completion, and the tokens and the text that stand before the right answers.

    `stop`: the thought's last tokens are those that end it, the answer's tag or the end of the text.
    """
    start = completion.text.rfind(OPENING)
    if start >= 0:
        kept = tokens_within(policy, completion.ids, start + len(OPENING))
        before, whole = written(policy, completion.ids[:kept]), completion.text[:start + len(OPENING)]
    else:
        kept, before = len(completion.ids), completion.text
        whole = before + OPENING
    ids = completion.ids[:kept]
    scored = ids if stop else (ids[:tokens_within(policy, ids, start)] if start >= 0 else
                               [i for i in ids if i not in policy.stop_ids])
    context = [i for i in ids if i not in policy.stop_ids] + policy.prompter.behind(before, whole[len(before):])
    thought = Completion(scored, completion.logprobs[:len(scored)], before, completion.finished or start >= 0,
                         completion.answer, completion.seconds, completion.cut)
    return thought, context, whole


def gold(policy, ask: Ask, before: str, cohort: tuple[int, int]) -> list[Completion]:
    """Return every right answer behind a text that opens it, as completions that nobody sampled."""
    found = []
    for text in answers.all_right(ask):
        ids = policy.prompter.behind(before, text + STOP)
        found.append(Completion(ids, [math.nan] * len(ids), text + STOP, True, Answer("ok"), cohort=cohort))
    return found
