"""ERank: every candidate alone is given a number; the policy's probabilities tell equal numbers apart, and are what the
model itself says."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from ranker import asking, drive, llms
from ranker.asking import add_scores, complete, local_model
from ranker.config import Rollout
from ranker.data import Answer, Ask, Candidate, Completion, Group, Query
from ranker.engine.sampler import Sampler
from ranker.errors import UserError
from ranker.evaluation.ask_log import AskLog
from ranker.rankers import pointwise


def query(relevance, context="", texts=None, name="q") -> Query:
    return Query(name, "rank", context, tuple(Candidate(f"c{i}", texts[i] if texts else f"text {i}")
                                              for i in range(len(relevance))), tuple(map(float, relevance)))


def saying(**answers):
    """A model that gives each candidate its answer: None for none, a number, or a number and its probabilities."""
    def answer(said):
        number, scores = said if isinstance(said, tuple) else (said, ())
        return Answer("missing_answer") if number is None else Answer("ok", (number,), scores=tuple(scores))
    return lambda asks: [(0, Completion([], [], "", True, answer(answers[ask.pool[0]]))) for ask in asks]


def sure(number, probability):
    """A number with its probability, the rest of which 0 (or 1) has."""
    return number, [probability if k == number else 1 - probability if k == (number == 0) else 0.0 for k in range(11)]


def ranked(question, model, **options):
    return drive.run(drive.load_ranker({"name": "pointwise"} | options), [question], model)[0]


def order(question, model, **options) -> str:
    return "".join(c[1:] for c in ranked(question, model, **options).order)


FOUR = query([0, 0, 0, 1])


def test_a_sure_six_beats_an_unsure_eight():
    model = saying(c0=sure(8, 0.7), c1=sure(6, 0.99), c2=sure(10, 0.5), c3=sure(0, 1.0))  # 5.6, 5.94, 5.0, 0
    assert order(FOUR, model) == "1023" and order(FOUR, model, score="written") == "2013"


def test_the_product_is_no_expectation():
    spread = lambda **share: [share.get(f"p{k}", 0.0) for k in range(11)]  # noqa: E731
    model = saying(c0=(7, spread(p7=0.6, p0=0.4)), c1=(4, spread(p4=0.5, p9=0.5)), c2=(3, spread(p3=0.9, p2=0.1)),
                   c3=(10, spread(p10=0.4, p1=0.3, p0=0.3)))
    assert order(FOUR, model) == "0321"  # 4.2, 2.0, 2.7, 4.0
    assert order(FOUR, model, score="expectation") == "1302"  # 4.2, 6.5, 2.9, 4.3


def test_ties_keep_the_order_given_and_what_cannot_be_read_comes_last():
    assert order(FOUR, saying(c0=None, c1=5, c2=0, c3=5), score="written") == "1320"
    r = ranked(FOUR, saying(c0=None, c1=None, c2=sure(0, 1.0), c3=None))
    assert r.order == ["c2", "c0", "c1", "c3"] and (r.calls, r.failed) == (4, 3)
    assert order(FOUR, saying(c0=None, c1=None, c2=None, c3=None), first_stage=0.2) == "0123"


def test_all_candidates_are_asked_about_at_once_each_alone():
    turns = []
    ranker = drive.load_ranker({"name": "pointwise", "score": "written"})
    r = drive.run(ranker, [FOUR], llms.scripted(llms.right_answer),
                  on_ask=lambda ask, turn, _: turns.append((turn, ask.pool, ask.decision)))[0]
    assert turns == [(0, (c,), "score") for c in FOUR.ids] and r.order[0] == "c3" and r.calls == ranker.calls(4) == 4
    plain = drive.load_ranker({"name": "pointwise"})
    assert drive.run(plain, [query([1])], llms.scripted(llms.right_answer))[0].calls == plain.calls(1) == 0


def test_a_model_without_probabilities_is_asked_for_in_one_line():
    with pytest.raises(UserError, match="ranker.score=product needs .* ranker.score=written"):
        ranked(FOUR, llms.scripted(llms.right_answer))
    with pytest.raises(UserError, match="ranker.score=expectation needs"):
        ranked(FOUR, llms.scripted(llms.right_answer), score="expectation")


def test_a_first_stage_is_mixed_in_by_z_scores():
    three = query([0, 0, 1])
    first, written = (pointwise.standardised(pointwise.places(three)),
                      pointwise.standardised({"c0": 3.0, "c1": 4.0, "c2": 8.0}))
    assert (first["c0"] > first["c1"] > first["c2"]
            and [sum(first.values()), sum(v * v for v in first.values())] == pytest.approx([0, 3]))
    assert written == pytest.approx({"c0": -2 / math.sqrt(14 / 3), "c1": -1 / math.sqrt(14 / 3),
                                     "c2": 3 / math.sqrt(14 / 3)})
    model = saying(c0=3, c1=4, c2=8)
    for weight in (0.0, 0.2, 0.4, 0.5, 0.9):
        mixed = {c: weight * first[c] + (1 - weight) * written[c] for c in three.ids}
        assert (ranked(three, model, score="written", first_stage=weight).order
                == sorted(three.ids, key=lambda c: -mixed[c]))
    assert ([order(three, model, score="written", first_stage=weight) for weight in (0.1, 0.4, 0.9)]
            == ["210", "201", "012"])


def test_numbers_that_are_all_equal_leave_the_first_stage_and_the_unreadable_stays_last():
    assert order(FOUR, saying(c0=5, c1=5, c2=5, c3=5), score="written", first_stage=0.2) == "0123"
    assert order(FOUR, saying(c0=None, c1=5, c2=5, c3=5), score="written", first_stage=0.9) == "1230"


@pytest.mark.parametrize("options, words", [
    ({"score": "sum"}, "product, expectation, written"), ({"first_stage": 1}, "between 0.0 and 0.99"),
    ({"first_stage": -0.1}, "between 0.0 and 0.99"), ({"pool": 1}, "at least 2"), ({"pool": -1}, "at least 0")])
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        drive.load_ranker({"name": "pointwise"} | options)


def test_training_asks_about_every_candidate_or_about_a_positive_and_some_others():
    question = query([0, 0, 1, 0, 0, 0])
    whole, some = (drive.load_ranker({"name": "pointwise", "pool": pool}) for pool in (0, 3))
    for seed in range(50):
        asks = whole.sampled_asks(question, random.Random(seed), None)
        assert (sorted(ask.pool[0] for ask in asks) == sorted(question.ids)
                and {(ask.decision, len(ask.pool)) for ask in asks} == {("score", 1)})
        asks = some.sampled_asks(question, random.Random(seed), None)
        assert len({ask.pool for ask in asks}) == 3 and ("c2",) in [ask.pool for ask in asks]
    assert ({whole.sampled_asks(question, random.Random(seed), None)[0].pool[0] for seed in range(50)}
            == set(question.ids))


# the probabilities of the numbers


def ask_of(asks) -> Ask:
    return Ask(asks[0].query, asks[0].query.ids[:1], "score")


def encode(policy, text) -> list[int]:
    return policy.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokenizer_of(encode, decode):
    return type("Tokenizer", (), {"__call__": lambda self, text, **options: encode(text, **options),
                                  "decode": lambda self, ids: decode(ids)})()


def by_hand(policy, ids, rest="") -> list[float]:
    """The shares of 0 to 10, each through the plain model by itself."""
    sums = []
    for number in range(11):
        tail = encode(policy, f"{rest}{number}</answer>")
        with torch.no_grad():
            logprobs = policy.causal_lm(input_ids=torch.tensor([ids + tail]), use_cache=False).logits[0].log_softmax(-1)
        sums.append(sum(logprobs[len(ids) - 1 + k, token].item() for k, token in enumerate(tail)))
    return torch.tensor(sums).softmax(-1).tolist()


def scored(policy, ask, ids, budget=4000) -> Completion:
    completion = complete(policy, ask, ids, [0.0] * len(ids), True)
    add_scores(policy, [Group(ask, policy.prompter.encode(ask), [completion])], budget)
    return completion


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("budget", [4000, 1])  # the eleven in one row, or each in a row of its own
def test_the_probabilities_are_those_of_the_model_after_what_it_wrote(make_policy, asks, quantize, budget):
    policy, ask = make_policy(quantize), ask_of(asks)
    head = encode(policy, "<think> a [1]</think>\n<answer>")
    completion = scored(policy, ask, head + encode(policy, "7</answer>"), budget)
    expected = by_hand(policy, policy.prompter.encode(ask) + head)
    assert completion.answer.value == (7,) and completion.answer.scores == pytest.approx(expected, abs=1e-5)
    assert sum(completion.answer.scores) == pytest.approx(1) and max(expected) > 2 * min(expected)


def test_ten_may_be_two_tokens(make_policy, asks):
    policy, ask = make_policy(), ask_of(asks)
    real, ten = policy.tokenizer, encode(policy, "10")

    def apart(text, **options):
        """A tokenizer that never joins two digits."""
        return {"input_ids": [i for part in text.replace("10", "1\0000").split("\0")
                              for i in real(part, **options)["input_ids"]]}

    policy.tokenizer = tokenizer_of(apart, real.decode)
    assert len(encode(policy, "10</answer>")) == len(encode(policy, "1</answer>")) + 1
    head = encode(policy, "<think> a</think>\n<answer>")
    for ids in (encode(policy, "10</answer>"), ten + encode(policy, "</answer>")):  # as it is written does not matter
        completion = scored(policy, ask, head + ids)
        assert completion.answer.value == (10,)
        assert completion.answer.scores == pytest.approx(by_hand(policy, policy.prompter.encode(ask) + head), abs=1e-5)


@pytest.mark.parametrize("written", [
    "<think> <answer>3</answer> is too low</think>\n<answer> 7 / 10\n</answer>",  # the last one counts
    "<think> a</think><answer>\n7</answer>", "<answer>7</answer>"])
def test_the_place_is_where_the_answer_that_counts_begins(make_policy, asks, written):
    policy, ask = make_policy(), ask_of(asks)
    ids = encode(policy, written)
    head = encode(policy, written[:written.rindex("<answer>") + len("<answer>")])
    assert ids[:len(head)] == head
    assert scored(policy, ask, ids).answer.scores == pytest.approx(by_hand(policy, policy.prompter.encode(ask) + head),
                                                                   abs=1e-5)


def test_a_token_that_goes_on_behind_the_tag_is_taken_apart(make_policy, asks):
    policy, ask = make_policy(), ask_of(asks)
    real, glued = policy.tokenizer, len(policy.tokenizer) - 1  # the last token stands for `>7`
    shown = lambda ids: "".join(">7" if i == glued else real.decode([i]) for i in ids)  # noqa: E731
    policy.tokenizer = tokenizer_of(real, shown)
    head = encode(policy, "<think> a</think>\n<") + encode(policy, "answer")
    completion = scored(policy, ask, head + [glued] + encode(policy, "</answer>"))
    assert completion.text.endswith("<answer>7</answer>") and completion.answer.value == (7,)
    assert completion.answer.scores == pytest.approx(by_hand(policy, policy.prompter.encode(ask) + head, ">"), abs=1e-5)


def test_only_readable_answers_to_score_asks_have_probabilities(make_policy, asks):
    policy, ask = make_policy(), ask_of(asks)
    for text in ("<answer>11</answer>", "<answer>seven</answer>", "7", "<think><answer>7</answer>"):
        assert not scored(policy, ask, encode(policy, text)).answer.scores
    pick = Ask(ask.query, ask.query.ids[:3], "pick")
    assert scored(policy, pick, encode(policy, "<answer>[2]</answer>")).answer == Answer("ok", pick.pool[1:2])


def writer(policy, texts) -> Sampler:
    """A sampler that writes the text of each prompt."""
    class Writer(Sampler):
        def __call__(self, prompts, *rest):
            return [[(ids, [0.0] * len(ids), True)] for prompt in prompts
                    for ids in [encode(policy, texts[tuple(prompt)])]]
    return Writer(policy, Rollout(tokens_per_prefill=1500))


def test_the_policy_behind_the_driver_ranks_by_its_own_probabilities(make_policy, asks):
    policy = make_policy()
    question = asks[0].query
    each = [Ask(question, (c,), "score") for c in question.ids]
    texts = {tuple(policy.prompter.encode(ask)): f"<think> a</think>\n<answer>{number}</answer>"
             for ask, number in zip(each, [7, 7, 7, 3, 3, "x"] * 9)}
    found = [completion.answer for _, completion in local_model(writer(policy, texts))(each)]
    assert ([a.ok for a in found] == [bool(a.scores) for a in found]
            and len({a.scores for a in found if a.ok}) == sum(a.ok for a in found))
    r = ranked(question, local_model(writer(policy, texts)))
    expected = {c: a.value[0] * a.scores[a.value[0]] if a.ok else -1.0 for c, a in zip(question.ids, found)}
    assert ([expected[c] for c in r.order] == pytest.approx(sorted(expected.values(), reverse=True))
            and r.failed == sum(not a.ok for a in found))
    head = encode(policy, "<think> a</think>\n<answer>")
    assert found[3].scores == pytest.approx(by_hand(policy, policy.prompter.encode(each[3]) + head), abs=1e-5)


class Killed(BaseException):
    pass


def test_an_evaluation_that_was_killed_ranks_by_the_same_probabilities(tmp_path):
    rng = random.Random(0)
    shares = {f"c{i}": [rng.random() for _ in range(11)] for i in range(5)}
    model, questions = (saying(**{c: (7, p) for c, p in shares.items()}),
                        [query([1, 0, 0, 0, 0], name=f"q{i}") for i in range(2)])
    ranker = drive.load_ranker({"name": "pointwise"})
    expected = drive.run(ranker, questions, model)
    assert expected[0].order != list(questions[0].ids)

    def dying(asks):
        raise Killed

    half = AskLog(tmp_path, {"checkpoint": "a"})
    assert drive.run(ranker, questions[:1], half.models("policy", 0, model)) == expected[:1]
    with pytest.raises(Killed):
        drive.run(ranker, questions[1:], half.models("policy", 0, dying))
    half.held.close()  # as the end of a process lets go of it
    again = AskLog(tmp_path, {"checkpoint": "a"})
    assert drive.run(ranker, questions[:1], again.models("policy", 0, dying)) == expected[:1]


def test_what_is_computed_counts_as_time_of_its_completions(make_policy, asks, monkeypatch):
    policy, ask = make_policy(), ask_of(asks)
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(asking, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    both = [complete(policy, ask, encode(policy, "<answer>7</answer>"), [], True, 1.0) for _ in range(2)]
    add_scores(policy, [Group(ask, policy.prompter.encode(ask), both)], 4000)
    assert [c.seconds for c in both] == [3.0, 3.0]
