"""Credit for places, sequences and rare success, clipped weights, and an entropy bonus, by direct formulas."""

import math
import random
from collections import Counter

import pytest
import torch

from ranker import losses, passes
from ranker.answers import parse
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.draws import sized
from ranker.engine.scoring import Row
from ranker.errors import UserError
from ranker.objectives import grpo, rank_credit
from ranker.passes import Batch

QUESTION = Query("q", "passage-5", "x", tuple(Candidate(c, f"text {c}") for c in "abc"), (0.0, 1.0, 0.0))
ASK = Ask(QUESTION, tuple("abc"), "order")


def test_a_sequence_is_clipped_as_a_whole_by_its_geometric_mean():
    """GSPO, against the formula: min(s A, clip(s) A) of each completion, s = exp(mean of its log-ratios), per token."""
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    old, moves = -torch.rand(3, 4), torch.tensor([[0.3, -0.1, 0.2, 0.0], [0.1, 0.3, 5.0, 5.0], [-0.4, 0.0, -0.1, 5.0]])
    new, advantage = (old + moves).requires_grad_(), torch.tensor([[1.0], [-1.0], [-2.0]])
    segments = torch.zeros(3, 4, dtype=torch.long)
    loss, sums = losses.policy_loss(new, old, advantage, mask, clip_low=0.05, clip_high=0.05, segments=segments)
    loss.backward()
    for row, (length, own) in enumerate(zip((4, 2, 3), advantage[:, 0].tolist())):
        s = math.exp(moves[row, :length].mean().item())
        clipped = min(max(s, 0.95), 1.05)
        chosen = -min(s * own, clipped * own)
        # each of its tokens has that loss; what is clipped has no gradient, the rest shares it
        slope = 0.0 if clipped * own < s * own else -s * own / length * length
        assert new.grad[row, :length].tolist() == pytest.approx([slope] * length, abs=1e-5)
        assert (new.grad[row, length:] == 0).all()
        total = chosen * length if row == 0 else total + chosen * length
    assert loss.item() == pytest.approx(total, abs=1e-5)
    assert (sums["clip_high"], sums["clip_low"]) == (4, 3)  # tokens of the first and of the third


def test_a_segments_ratio_is_the_geometric_mean_over_its_tokens_and_its_gradient_is_shared():
    torch.manual_seed(0)
    new = (torch.randn(2, 5) * 0.1).requires_grad_()
    old, mask = torch.randn(2, 5) * 0.1, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 9, 9]])
    advantage = torch.tensor([[2.0, 2.0, -1.0, -1.0, -1.0], [0.5, 1.0, 1.0, 0.0, 0.0]])
    loss, _ = losses.policy_loss(new, old, advantage, mask, clip_low=9.0, clip_high=9.0, segments=segments)
    direct = 0.0
    for i, places, a in ((0, [0, 1], 2.0), (0, [2, 3, 4], -1.0), (1, [0], 0.5), (1, [1, 2], 1.0)):
        ratio = (new[i, places] - old[i, places]).mean().exp()
        direct = direct - len(places) * ratio * a
    torch.testing.assert_close(loss, direct)
    gradient, expected = (torch.autograd.grad(value, new, retain_graph=True)[0] for value in (loss, direct))
    torch.testing.assert_close(gradient, expected)


def test_cispo_weighs_every_token_by_its_clipped_ratio():
    new = torch.tensor([[0.5, -0.5, 0.01]], requires_grad=True)
    advantage, mask = torch.tensor([[1.0, -1.0, 2.0]]), torch.ones(1, 3).bool()
    losses.policy_loss(new, torch.zeros(1, 3), advantage, mask, clip_low=0.2, clip_high=0.3, surrogate="cispo"
                       )[0].backward()
    weights = torch.tensor([1.3, 0.8, math.exp(0.01)])  # PPO's surrogate would teach the first two nothing
    torch.testing.assert_close(new.grad, -(weights * advantage))


def test_rare_success_weighs_by_one_over_the_mean():
    rewards, cohorts = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 1, 0, 0]), torch.tensor([0] * 4 + [1] * 4 + [2] * 2)
    found = losses.cohort_advantages(rewards, cohorts, "rare")
    torch.testing.assert_close(found, torch.tensor([3, -1, -1, -1, 1 / 3, 1 / 3, -1, 1 / 3, 0, 0]))
    group = sampled("<answer>[1] > [2] > [3]</answer>", "<answer>[2] > [1] > [3]</answer>")
    group.completions[0].returns["total"] = -0.5
    with pytest.raises(UserError, match="not negative; one completion earned -0.5"):
        grpo.targets([group], grpo.Options(advantage="rare"))


def sampled(*texts) -> Group:
    found = [Completion([1] * 4, [-0.5] * 4, text, True, parse(text, ASK)) for text in texts]
    for i, c in enumerate(found):
        c.returns, c.alive = {"task": float(i), "total": float(i)}, True
    return Group(ASK, [], found)


def test_the_entropy_bonus_has_the_gradient_of_the_entropy():
    logits = torch.tensor([0.2, -1.0, 0.9, 0.0], requires_grad=True)
    logs = logits.log_softmax(0)
    entropy = -(logs.exp() * logs).sum()
    expected = torch.autograd.grad(entropy, logits, retain_graph=True)[0]
    paid = 0.0
    for token in range(4):  # every token, by its probability
        group = sampled("<answer>[2]</answer>")
        [c] = group.completions
        c.logprobs, c.ids = [logs[token].item()] * 2, [1, 1]
        c.signals["advantage"] = torch.zeros(2)
        weight = logs[token].exp().item()
        surprise = -torch.tensor(c.logprobs)
        grpo.explore([c, *beside(entropy.item(), surprise)], grpo.Options(entropy=0.1))
        paid = paid + weight * c.signals["advantage"][0].item() * logs[token]
    torch.testing.assert_close(torch.autograd.grad(paid, logits)[0], 0.1 * expected)


def beside(entropy: float, surprise: torch.Tensor) -> list[Completion]:
    """A completion beside another one, so that the mean surprise of both is `entropy`."""
    other = sampled("<answer>[2]</answer>").completions[0]
    other.logprobs = (-(2 * entropy - surprise)).tolist()
    other.signals["advantage"] = torch.zeros(len(other.logprobs))
    return [other]


def test_the_entropy_bonus_is_paid_below_its_floor_alone():
    group = sampled("<answer>[2] > [1] > [3]</answer>", "<answer>[1] > [2] > [3]</answer>")
    for floor, paid in ((0.0, 1.0), (0.6, 1.0), (0.4, 0.0)):  # every token has 0.5 nats of surprise
        record = grpo.targets([group], grpo.Options(entropy=0.1, entropy_floor=floor))
        assert record == {"entropy_bonus": paid}
    assert grpo.targets([group], grpo.Options()) == {}


def test_places_know_the_thought_a_slip_and_a_missing_candidate(make_policy):
    policy = make_policy()
    for text, named in (("<think>[3] is odd</think>\n<answer>[2] > [1] > [3]</answer>", 3),
                        ("<answer>[2] > [1] > [2] > [3]</answer>", 3), ("<answer>[2] > [1]</answer>", 2),
                        ("<answer>none</answer>", 0)):
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        c = Completion(ids, [0.0] * len(ids), text, True, parse(text, ASK))
        passes.place(policy, [Row([], [ids], [c])], 1.0, 1000)
        found = c.signals["place"].tolist()
        assert found == sorted(found) and max(found) == named and len(found) == len(ids)
        for k, (begin, end) in enumerate(c.answer.places, 1):
            own = [i for i, place in enumerate(found) if place == k]
            before = policy.tokenizer.decode(ids[:own[0]])
            assert len(before) <= begin < len(policy.tokenizer.decode(ids[:own[-1] + 1]))
            assert not before.endswith(text[begin:end])


def test_the_returns_of_places_are_gains_to_go_and_a_slip_is_carried_by_all():
    third = 1 / math.log2(4)
    best = [1.0, 0.5, 0.0]
    ideal = 1 + 0.5 / math.log2(3)
    found = rank_credit.place_returns([0.5, 0.0, 1.0], 3, True, best, 0.5)
    torch.testing.assert_close(found, torch.tensor([0.5 + third, third, third]) / ideal)
    found = rank_credit.place_returns([0.5], 3, False, best, 0.25)
    torch.testing.assert_close(found, torch.tensor([0.5 / ideal - 0.25, -0.25, -0.25]))


def test_every_place_is_compared_with_the_same_place_of_the_group_and_the_thought_with_the_first():
    group = sampled("<answer>[2] > [1] > [3]</answer>", "<answer>[1] > [2] > [3]</answer>", "<answer>none</answer>")
    for c in group.completions:
        c.signals["place"] = torch.tensor([0, 1, 2, 3])
    rank_credit.targets([group], rank_credit.Options(slip=0.5))
    second = 1 / math.log2(3)
    paid = torch.tensor([[1.0, 0, 0], [second, second, 0], [-0.5, -0.5, -0.5]])
    expected = paid - paid.mean(0)
    for c, own in zip(group.completions, expected):
        torch.testing.assert_close(c.signals["advantage"], own[[0, 0, 1, 2]])
    batch = Batch(group.completions, [slice(0, 3)], torch.zeros(3, 4, requires_grad=True), None,
                  torch.ones(3, 4).bool())
    loss, _ = rank_credit.loss(batch, rank_credit.Options())
    torch.testing.assert_close(loss, -sum(c.signals["advantage"].sum() for c in group.completions))
    with pytest.raises(UserError, match="take ranker.name=listwise"):
        group.ask = Ask(QUESTION, tuple("abc"), "eliminate")
        rank_credit.targets([group], rank_credit.Options())


def test_sizes_are_drawn_by_the_share_of_live_groups():
    assert [round(sized.live_share(n, 8, 0, 0, 1.0), 2) for n in (2, 5, 10, 20)] == [0.99, 0.83, 0.57, 0.34]
    assert sized.live_share(2, 8, 36, 0, 4.0) == pytest.approx(0.0992, abs=1e-3)  # nothing was alive for a while
    for power, more in ((4.0, True), (0.0, False)):
        sizes, state = Counter(), {}
        draw(Twenty(), state, sizes, lambda size: False, sized.Options(power=power))
        assert (sizes[2] > 2 * sizes[20]) == more
    sizes, state = Counter(), {}
    for _ in range(30):  # nothing lives below ten candidates: the draw follows
        draw(Twenty(), state, sizes, lambda size: size >= 10, sized.Options(power=2.0))
    late = Counter()
    draw(Twenty(), state, late, lambda size: size >= 10, sized.Options(power=2.0))
    assert sum(n for size, n in late.items() if size >= 10) > 0.8 * late.total()
    assert set(state["sizes"]) <= set(map(str, range(2, 21)))


class Twenty:
    def take(self, count, state):
        many = Query("q", "passage-5", "x", tuple(Candidate(f"c{i}", "t") for i in range(20)), (1.0, *[0.0] * 19))
        return [(i, many) for i in range(count)]


def draw(source, state, sizes, lives, options):
    """One draw of 400 pools without a model; `lives` says which sizes are alive."""

    class Sample:
        class rollout:
            prompts_per_step, completions_per_prompt = 400, 8

        class ranker:
            @staticmethod
            def sampled_asks(query, rng, size):
                return [Ask(query, query.ids[:size], "eliminate")]

        @staticmethod
        def seed(state):
            state["draws"] = state.get("draws", 0) + 1
            return random.Random(state["draws"]).getrandbits(30)

        def __call__(self, asks, counts, seeds):
            return [Group(ask, [], [Completion([], [], "", True, parse("", ask), cohort=i)])
                    for i, ask in enumerate(asks)]

    def judge(groups):
        for group in groups:
            sizes[len(group.ask.pool)] += 1
            group.completions[0].alive = lives(len(group.ask.pool))
        return groups

    sized.draw(source, Sample(), judge, state, options)
