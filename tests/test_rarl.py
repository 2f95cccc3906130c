"""RARL-style: what values and orders earn, and mutants of groups that teach nothing."""

import math
import random
import time
from dataclasses import replace

import pytest
import torch

from ranker import drive, llms, log, plugins, thoughts
from ranker.answers import parse
from ranker.asking import complete
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.decisions import values
from ranker.draws import mutated
from ranker.errors import UserError
from ranker.objectives import grpo
from ranker.passes import Batch
from rewards import values_and_order
from rewards.format import exact
from rewards.values_and_order import Options, closeness, composite, tau

QUESTION = Query("q", "passage-5", "warm", tuple(Candidate(c, f"text {c}") for c in "abcd"), (0.0, 4.0, 2.0, 1.0))
WEIGHTS = Options(delta=5.0, tau=0.5, position=0.3, top=0.2)


def test_a_value_earns_by_a_parabola_within_its_tolerance():
    assert [closeness([30 + e], [30], 5) for e in (0, 1, 3, 5, 6, -1)] == pytest.approx([1, 0.96, 0.64, 0, 0, 0.96])
    assert closeness([31, None], [30, 30], 5) == pytest.approx(0.48)
    with pytest.raises(UserError, match="delta"):
        plugins.load("reward", {"name": "values_and_order", "delta": 0, "tau": 1, "position": 0, "top": 0})
    with pytest.raises(UserError, match="must sum to 1"):
        plugins.load("reward", {"name": "values_and_order", "delta": 1, "tau": 1, "position": 1, "top": 0})


def test_an_order_earns_by_tau_places_and_its_first():
    assert tau([3, 2, 1, 0]) == 1 and tau([2, 3, 1, 0]) == pytest.approx(2 / 3) and tau([0, 1, 2, 3]) == -1
    assert tau([5]) == tau([1, 1]) == 1
    assert composite([3, 2, 1, 0], WEIGHTS) == pytest.approx(1)
    assert composite([3, 1, 2, 0], WEIGHTS) == pytest.approx(0.5 * (2 / 3 + 1) / 2 + 0.3 * 0.5 + 0.2)
    assert composite([1, 1, 0], WEIGHTS) == pytest.approx(1)  # any order inside a tie


def test_values_are_read_strictly_and_by_their_identifiers():
    ask = Ask(QUESTION, tuple("abcd"), "values")
    read = lambda text: parse(f"<answer>{text}</answer>", ask)  # noqa: E731
    assert read("[2] 10, [1] 0, [3]: 5.5, [4] = 2").value == (0, 10, 5.5, 2)
    assert read(values.right(ask)).value == (0, 10, 5, 2.5)
    part = read("[2] 10, [1] 0")
    assert part.status == "missing_ids" and part.value == (0, 10, None, None)
    for text, status in (("[9] 1", "not_a_candidate"), ("[1] 11", "not_a_candidate"), ("[1] 1, [1] 2", "repetition"),
                         ("about [1] 7", "missing_answer"), ("7, 3, 1, 2", "missing_answer")):
        assert read(text).status == status
    ranker = drive.load_ranker({"name": "valued"})
    [ranking] = drive.run(ranker, [QUESTION], llms.scripted(llms.right_answer))
    assert ranking.order == ["b", "c", "d", "a"] and ranking.calls == 1
    kinds = {ranker.sampled_asks(QUESTION, random.Random(i), None)[0].decision for i in range(20)}
    assert kinds == {"values", "order"}


def test_the_reward_pays_whichever_was_asked_for_and_the_exact_form_alone():
    for decision in ("values", "order"):
        ask = Ask(QUESTION, tuple("abcd"), decision)
        [(_, right)], [(_, wrong)] = llms.scripted(llms.right_answer)([ask]), llms.scripted(llms.wrong_answer)([ask])
        bare = Completion([], [], right.text[right.text.index("<answer>"):], True, right.answer)
        paid = values_and_order.reward([Group(ask, [], [right, wrong, bare])], WEIGHTS)[0]
        assert paid[0] == pytest.approx(1) and paid[1] < 0.5 and paid[2] == 0
    with pytest.raises(UserError, match="take ranker.name=valued"):
        values_and_order.reward([Group(Ask(QUESTION, tuple("ab"), "pick"), [], [right])], WEIGHTS)


def test_a_long_list_of_values_is_read_at_once_and_so_is_one_with_a_remark_behind_it():
    many = Query("q", "passage-5", "warm", tuple(Candidate(f"c{i}", "t") for i in range(40)), (1.0,) * 40)
    ask = Ask(many, many.ids, "values")
    for between in (", ", "\n", "; ", " "):
        text = between.join(f"[{k}] 7" for k in range(1, 41))
        started = time.perf_counter()
        assert parse(f"<answer>{text}</answer>", ask).ok
        assert not parse(f"<answer>{text} done</answer>", ask).ok and time.perf_counter() - started < 0.5


def test_mutants_are_the_same_for_the_same_seed_and_swap_what_differs(make_policy):
    policy = make_policy()
    one = Query("q", "passage-5", "warm", tuple(Candidate(c, f"text {c}") for c in "abcdefgh"), (1.0, *[0.0] * 7))
    ask = Ask(one, one.ids, "order")
    right = Completion([], [], llms.right_answer(ask), True, parse(llms.right_answer(ask), ask))
    texts = {mutated.mutant(policy, ask, right, random.Random(3), mutated.Options()).text for _ in range(3)}
    assert len(texts) == 1
    for seed in range(20):  # the only swap that changes anything is that of the best one
        made = mutated.mutant(policy, ask, right, random.Random(seed), mutated.Options())
        assert made.answer.ok and made.answer.value[1] == "a" and exact(made.text)
    unpaid = replace(right, rewards={"task": 0.0})  # right, in a form that earned nothing
    made = mutated.mutant(policy, ask, unpaid, random.Random(0), mutated.Options())
    assert mutated.was_right(ask, made, 1.0) and exact(made.text)
    for swaps in (2, 3):
        made = mutated.mutant(policy, ask, right, random.Random(swaps), mutated.Options(swaps=swaps))
        assert not mutated.was_right(ask, made, 1.0)
    answered = complete(policy, ask, policy.prompter.completion("<answer>[1]</answer>"), [-0.5], True)
    assert exact(mutated.mutant(policy, ask, answered, random.Random(0), mutated.Options()).text)
    long = policy.prompter.completion("<think>" + "it is a b c d e f g " * 12)
    cut = complete(policy, ask, long, [-0.5] * len(long), False)
    made = mutated.mutant(policy, ask, cut, random.Random(0), mutated.Options())
    assert len(made.ids) <= len(long) and exact(made.text) and made.answer.ok
    bare = Completion([], [], "I think that it is a", True, parse("I think that it is a", ask))
    assert exact(mutated.mutant(policy, ask, bare, random.Random(0), mutated.Options()).text)
    with pytest.raises(UserError, match="knows how to mutate"):
        mutated.mutant(policy, Ask(one, one.ids, "narrow"), bare, random.Random(0), mutated.Options())


@pytest.mark.parametrize("decision", ["order", "values", "eliminate", "pick"])
def test_a_mutant_keeps_the_reasoning_and_decides_rightly_or_where_that_taught_nothing_wrongly(make_policy, decision):
    policy, ask = make_policy(), Ask(QUESTION, tuple("abcd"), decision)
    for write in (llms.right_answer, llms.wrong_answer):
        text = write(ask).replace("4 shown", "so it is")
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        completion = complete(policy, ask, ids, [-0.5] * len(ids), True)
        best = 4.0
        right = mutated.was_right(ask, completion, best)
        assert right == (write is llms.right_answer)
        made = mutated.mutant(policy, ask, completion, random.Random(0), mutated.Options())
        assert "so it is" in made.text and made.answer.ok and made.text.endswith("</answer>")
        assert mutated.was_right(ask, made, best) != right
        assert all(map(math.isnan, made.logprobs)) and made.signals["mutant"].all()


def test_only_groups_that_teach_nothing_are_mutated_and_then_they_teach(make_policy):
    policy, ask = make_policy(), Ask(QUESTION, tuple("abcd"), "order")

    def group(number, *writers):
        found = []
        for write in writers:
            ids = policy.tokenizer(write(ask), add_special_tokens=False)["input_ids"]
            found.append(complete(policy, ask, ids, [-0.5] * len(ids), True))
            found[-1].cohort = number
        return Group(ask, policy.prompter.encode(ask), found)

    alike, mixed = group(0, *[llms.wrong_answer] * 4), group(1, llms.right_answer, *[llms.wrong_answer] * 3)
    before = list(mixed.completions)

    class Sample:
        run_seed, ranker = 0, drive.load_ranker({"name": "listwise"})
        rollout = type("rollout", (), {"prompts_per_step": 2, "completions_per_prompt": 4})

        def __init__(self):
            self.policy = policy

        def seed(self, state):
            state["draws"] = state.get("draws", 0) + 1
            return 1

        def __call__(self, asks, counts, seeds):
            return [alike, mixed]

    def judge(groups, call=iter(range(9))):
        number = next(call)
        for g in groups:
            for c, worth in zip(g.completions, values_and_order.reward([g], WEIGHTS)[0]):
                c.rewards, c.cohort = {"task": worth}, (number, 0, c.cohort)
        return groups

    class Twice:
        def take(self, count, state):
            return [(0, QUESTION), (1, QUESTION)]

    groups = mutated.draw(Twice(), Sample(), judge, {}, mutated.Options(count=1))
    assert groups[1].completions == before and all(a is b for a, b in zip(groups[1].completions, before))
    assert [c.signals["mutant"].any().item() for c in groups[0].completions] == [False] * 3 + [True]
    assert len({c.rewards["task"] for c in groups[0].completions}) == 2
    assert groups[0].completions[0].cohort == (1, 0, 0) and groups[1].completions[0].cohort == (1, 0, 1)
    assert [record.get("sampled") for record in log.completion_records(1, groups[:1])] == [None] * 3 + [False]
    groups[0].completions[3].rewards["total"], groups[0].completions[3].advantage = 9.0, 1.0
    for c in groups[0].completions[:3]:
        c.rewards["total"] = 0.0
    assert not thoughts.kept(1, groups[:1])  # nobody thought so
    assert "entropy" in log.rollout_means(groups[:1]) and log.rollout_means(groups[:1])["entropy"] == 0.5
    for since, until, mutates in ((2, 0, False), (1, 1, True), (0, 1, True)):  # in the first draw
        alike.completions = group(0, *[llms.wrong_answer] * 4).completions
        drawn = mutated.draw(Twice(), Sample(), judge, {}, mutated.Options(since=since, until=until))
        assert any(c.signals["mutant"].any() for c in drawn[0].completions) == mutates
    alike.completions = group(0, *[llms.wrong_answer] * 4).completions
    later = mutated.draw(Twice(), Sample(), judge, {"draws": 3}, mutated.Options(until=3))
    assert not any(c.signals["mutant"].any() for c in later[0].completions)  # the fourth
    with pytest.raises(UserError, match="must be below"):
        mutated.draw(Twice(), Sample(), judge, {}, mutated.Options(count=4))


def test_mutants_have_no_part_in_the_kl_and_their_first_ratio_is_one():
    found = [Completion([1, 2], [-1.0] * 2, "", True, parse("", Ask(QUESTION, tuple("ab"), "order"))) for _ in range(2)]
    for c, own in zip(found, (0.0, 1.0)):
        c.signals = {"mutant": torch.full((2,), own), "reference": torch.tensor([-3.0, -3.0]),
                     "advantage": torch.zeros(2)}
    batch = Batch(found, [slice(0, 2)], torch.full((2, 2), -1.0, requires_grad=True), None, torch.ones(2, 2).bool())
    loss, sums = grpo.loss(batch, grpo.Options(beta=1.0))
    assert loss.item() == pytest.approx(2 * 2.0**2 / 2) and sums["drift"] == 0  # of the first one's two tokens
