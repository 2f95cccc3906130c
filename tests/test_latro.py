"""LaTRO: what a thought earns against a plain forward pass, its gradient against the formula, and thoughts without an
end."""

import math
import random
from dataclasses import replace

import pytest
import torch

from ranker import answers, asking, config as settings, drive, passes, plugins, world
from ranker.config import Rollout
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.draws import gold_answers
from ranker.engine import policy as policies
from ranker.engine.sampler import Sampler
from ranker.engine.scoring import score
from ranker.objectives import latro

QUESTION = Query("q", "passage-5", "warm", tuple(Candidate(c, f"text {c}") for c in "abc"), (0.0, 1.0, 0.0))
ASK = Ask(QUESTION, tuple("abc"), "eliminate")


def completion(policy, text, finished=True) -> Completion:
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Completion(ids, [-0.5] * len(ids), text, finished, answers.parse(text, ASK, finished))


def groups_of(policy, *texts, finished=True) -> list[Group]:
    """The groups that the draw would give for completions of these texts."""
    prompt, thoughts, behind = policy.prompter.encode(ASK), [], []
    for k, text in enumerate(texts):
        thought, context, before = gold_answers.cut(policy, completion(policy, text, finished))
        thought.cohort = 0, 0, 0
        thoughts.append(thought)
        if thought.finished:
            golds = gold_answers.gold(policy, ASK, before, (0, k))
            for c in golds:
                c.cohort = 0, 0, c.cohort
            behind.append(Group(ASK, prompt + context, golds))
    return [Group(ASK, prompt, thoughts), *behind]


def as_a_tree(groups) -> list[Group]:
    """The same completions with the answers in the thoughts' group, each behind its thought, where that ends with the
    tag."""
    first, *others = groups
    thoughts, apart = list(first.completions), []
    for group, thought in zip(others, thoughts):
        if group.prompt == first.prompt + thought.ids:
            first.completions += [replace(c, behind=thought) for c in group.completions]
        else:
            apart.append(group)
    return [first, *apart]


def learned(policy, groups, options):
    """Log-probabilities of all completions are known, and the targets are set."""
    latro.alive(groups, options)
    rows = passes.rows_of(groups, math.inf)
    passes.run(latro.passes(options), [c for g in groups for c in g.completions], policy, rows, 1.0, 10000)
    return rows, latro.targets(groups, options)


def test_right_answers_are_all_that_are_right():
    assert answers.all_right(ASK) == ["[1]", "[3]"]
    assert answers.all_right(Ask(QUESTION, tuple("abc"), "pick")) == ["[2]"]
    assert answers.all_right(Ask(QUESTION, tuple("abc"), "order")) == ["[2] > [1] > [3]"]
    assert answers.all_right(Ask(QUESTION, ("a", "c"), "eliminate")) == ["[1]", "[2]"]  # nothing is better


@pytest.mark.parametrize("text", ["<think>[2] fits</think>\n<answer>[2]</answer>", "<think>so it is",
                                  "<think>a</think>\n<answer>"])
def test_the_answer_and_nothing_else_is_scored_behind_the_thought(make_policy, text):
    policy = make_policy()
    first, gold = groups_of(policy, text)
    opened = text if "<answer>" in text else text + "<answer>"
    opened = opened[:opened.rfind("<answer>") + len("<answer>")]
    assert policy.tokenizer.decode(gold.prompt[len(first.prompt):]) == opened
    [thought] = first.completions
    assert policy.tokenizer.decode(thought.ids) == (opened if "<answer>" in text else text)
    _, record = learned(policy, [first, gold], latro.Options(beta=0.0))
    total = 0.0
    for answer in ("[1]</answer>", "[3]</answer>"):
        ids = policy.tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logs = policy.model(torch.tensor([gold.prompt + ids])).logits[0].log_softmax(-1)
        total += math.exp(sum(logs[len(gold.prompt) - 1 + i, token].item() for i, token in enumerate(ids)))
    assert record["gold_logprob"] == pytest.approx(math.log(total), abs=1e-4)


def test_where_a_thought_ends_is_learned_unless_the_tag_is_cut_off(make_policy):
    policy = make_policy()
    said = completion(policy, "<think>[2] fits</think>\n<answer>[2]</answer>")
    (whole, before, text), (bare, also, same) = (gold_answers.cut(policy, said, stop) for stop in (True, False))
    assert (before, text) == (also, same) and text.endswith("<answer>")
    assert policy.tokenizer.decode(whole.ids) == text
    assert policy.tokenizer.decode(bare.ids) == text.removesuffix("<answer>") and bare.ids == whole.ids[:len(bare.ids)]
    assert len(bare.logprobs) == len(bare.ids)


def test_thoughts_that_lead_to_right_answers_earn_more():
    """The built-in policy's own thoughts; what it answered behind them is not looked at by the objective."""
    policy = policies.load(settings.Model(quantize="none", device="cpu"), plugins.load("lora", {"name": "lora"}))
    sampler = Sampler(policy, Rollout(max_new_tokens=96))
    asks = [drive.load_ranker({"name": "elimination"}).sampled_asks(world.query("router-balance", "train", i),
                                                                     random.Random(i), 4)[0] for i in range(6)]
    paid = {True: [], False: []}
    for i, group in enumerate(asking.sample_groups(sampler, asks, 8, 1.0, 7)):
        groups = [Group(group.ask, group.prompt, [])]
        for k, c in enumerate(group.completions):
            thought, context, before = gold_answers.cut(policy, c)
            thought.cohort = 0, 0, i
            groups[0].completions.append(thought)
            golds = gold_answers.gold(policy, group.ask, before, (i, k))
            for answer in golds:
                answer.cohort = 0, 0, answer.cohort
            groups.append(Group(group.ask, group.prompt + context, golds))
        learned(policy, groups, latro.Options(beta=0.0))
        for c, thought in zip(group.completions, groups[0].completions):
            right = [text.strip("[]") for text in answers.all_right(group.ask)]
            if c.answer.ok:
                named = str(group.ask.pool.index(c.answer.value[0]) + 1)
                paid[named in right].append(thought.advantage)
    assert len(paid[True]) > 3 and len(paid[False]) > 3
    assert sum(paid[True]) / len(paid[True]) > 0 > sum(paid[False]) / len(paid[False])


def test_advantages_are_leave_one_out_and_the_penalty_is_never_more_than_the_mean():
    cohorts, gold = torch.tensor([0, 0, 1, 1]), torch.tensor([-1.0, math.nan, -3.0, -5.0])
    found = latro.penalised(gold, cohorts, latro.Options())
    assert found.tolist() == [-1.0, -6.0, -3.0, -5.0]
    assert latro.penalised(gold, cohorts, latro.Options(penalty_mean="prompt")).tolist() == [-1.0, -2.0, -3.0, -5.0]
    assert latro.penalised(torch.tensor([0.5, math.nan]), cohorts[:2], latro.Options()).tolist() == [0.5, 0.5]
    assert latro.penalised(torch.tensor([math.nan] * 2), cohorts[:2], latro.Options()).tolist() == [0.0, 0.0]


def test_the_gradient_is_that_of_the_formula(make_policy):
    policy, options = make_policy(), latro.Options(beta=0.3, sft_weight=0.7)
    with torch.no_grad():
        for parameter in policy.adapter_parameters().values():  # else the reference is the policy
            parameter.add_(torch.randn_like(parameter) * 0.02)
    groups = groups_of(policy, "<think>[3]</think>\n<answer>[3]</answer>", "<think>no", "<think>[1]</think>\n<answer>")
    rows, record = learned(policy, groups, options)
    logprobs, _, mask = score(policy, rows, 1.0)
    found = [c for row in rows for c in row.keys]
    place, slices = 0, []
    for row in rows:
        slices.append(slice(place, place := place + len(row.keys)))
    batch = passes.Batch(found, slices, logprobs, None, mask)
    loss = latro.loss(batch, options)[0] / len(rows)  # as the loop divides
    sums = {id(c): total for c, total in zip(found, (logprobs * mask).sum(-1))}
    gold = [torch.stack([sums[id(c)] for c in group.completions]).logsumexp(0) for group in groups[1:]]
    own = [sums[id(c)] for c in groups[0].completions]
    earned = [g.item() - 0.3 * (c.signals["old"] - c.signals["reference"]).sum().item()
              for g, c in zip(gold, groups[0].completions)]
    direct = 0.0
    for k in range(3):
        advantage = earned[k] - (sum(earned) - earned[k]) / 2
        direct = direct - (advantage * own[k] + 0.7 * gold[k]) / 3
    parameters = list(policy.adapter_parameters().values())
    ours, theirs = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, direct))
    for one, two in zip(ours, theirs):
        torch.testing.assert_close(one, two, atol=2e-3 * two.abs().max().item() + 1e-8, rtol=0.0)
    assert record["self_reward"] == pytest.approx(sum(earned) / 3, abs=1e-4)
    for c in groups[0].completions:
        c.advantage = 0.0
    nothing = [c for group in groups[1:] for c in group.completions]
    for c in nothing:
        c.signals["answered"] = c.signals["answered"] * 0
    assert latro.loss(batch, options)[0].item() == 0.0


def test_a_thought_that_was_cut_off_has_no_answers_and_costs_twice_the_mean(make_policy):
    policy = make_policy()
    groups = groups_of(policy, "<think>[3]</think>\n<answer>[3]</answer>")
    [cut_off] = groups_of(policy, "<think>and on and on", finished=False)
    groups[0].completions += cut_off.completions
    _, record = learned(policy, groups, latro.Options(beta=0.0))
    first, second = groups[0].completions
    assert record["unfinished"] == 0.5 and record["gold_logprob"] < 0
    assert first.advantage == pytest.approx(-record["gold_logprob"]) == pytest.approx(-second.advantage)
    assert latro.passes(latro.Options(beta=0.0)) == {"old"}  # no reference pass


def test_a_thought_without_a_token_is_legal(make_policy):
    """The policy answers at once, and the tag is not learned: nothing of the thought is scored, the answers are."""
    policy = make_policy()
    groups = groups_of(policy, "<answer>[1]</answer>", "<think>[3]</think>\n<answer>[3]</answer>")
    groups[0].completions[0].ids, groups[0].completions[0].logprobs = [], []
    rows, record = learned(policy, groups, latro.Options())
    assert math.isfinite(record["self_reward"]) and record["unfinished"] == 0
    [batch] = list(passes.batched(policy, rows, 1.0, 10**6))
    loss, _ = latro.loss(batch, latro.Options())
    assert loss.isfinite()
    means = latro.Options(per_token=True, beta=0.0)
    long = latro.gold_logprobs(groups, groups[0].completions)
    assert all(a < b for a, b in zip(long, latro.gold_logprobs(groups, groups[0].completions, per_token=True)))
    assert latro.loss(batch, means)[0].isfinite()


@pytest.mark.parametrize("options", [latro.Options(beta=0.3), latro.Options(beta=0.0, per_token=True)])
def test_answers_that_continue_thoughts_of_one_row_are_as_answers_in_rows_of_their_own(make_policy, options):
    found = []
    for tree in False, True:
        policy = make_policy()
        groups = groups_of(policy, "<think>[3]</think>\n<answer>[3]</answer>", "<think>no", "<answer>[1]</answer>",
                           "<think>[1] or [2] or [1]</think>\n<answer>[2]</answer>")
        groups = as_a_tree(groups) if tree else groups
        rows, record = learned(policy, groups, options)
        assert len(rows) == (2 if tree else 5)
        loss = 0.0
        for batch in passes.batched(policy, rows, 1.0, 10**6):
            loss = loss + latro.loss(batch, options)[0] / len(rows)
        loss.backward()
        found.append((loss.item(), record, torch.cat([p.grad.flatten() for p in policy.adapter_parameters().values()])))
    (loss, record, gradient), (same, again, other) = found
    assert same == pytest.approx(loss, rel=1e-5) and again == pytest.approx(record, rel=1e-5)
    torch.testing.assert_close(other, gradient, atol=1e-4, rtol=1e-3)
