"""PRILoRA-style: ranks by depth, what is pruned and when, statistics of learning alone, and the way back by PEFT."""

import pytest
import torch
from peft import PeftModel

from ranker import plugins
from ranker.adapters import prilora
from ranker.engine.policy import save_adapter
from ranker.engine.scoring import Row, score
from ranker.errors import UserError

ADAPTER = plugins.load("lora", {"name": "prilora", "first": 2, "last": 6, "interval": 2, "start": 0})


def test_ranks_rise_with_depth():
    assert prilora.ranks(12, 4, 12) == [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12]
    for layers in (12, 24, 28, 36):
        found = prilora.ranks(layers, 4, 12)
        assert sum(found) / layers == 8.0 and found == sorted(found) and (found[0], found[-1]) == (4, 12)
        assert prilora.ranks(layers, 12, 4) == found[::-1]
    assert prilora.ranks(1, 4, 12) == [4]


def test_the_lowest_products_of_each_row_become_zero_and_the_rest_stays():
    weight, average = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([9.0, 1.0, 1.0])  # products 9, 2, 3
    assert prilora.pruned(weight, average, 0.34).tolist() == [[1.0, 0.0, 3.0]]
    torch.manual_seed(0)
    for size, zeros in ((8, 4), (5, 2)):
        weight = torch.randn(3, size)
        found = prilora.pruned(weight, torch.rand(size), 0.5)
        assert ((found == 0).sum(1) == zeros).all() and torch.equal(found[found != 0], weight[found != 0])
    assert prilora.pruned(torch.ones(1, 4), torch.ones(4), 0.5).tolist() == [[0.0, 0.0, 1.0, 1.0]]  # ties: the first
    assert torch.equal(prilora.pruned(weight, torch.rand(5), 0.0), weight)


def test_averages_move_once_a_step_whatever_the_batches():
    found = prilora.Statistics({"a.b": 1}, torch.device("cpu"))
    average = getattr(found, prilora.key("a.b"))
    for inputs in ([[3.0]], [[3.0], [4.0]]):  # norm 3, then 5 in two batches
        for part in inputs:
            found.see("a.b", torch.tensor([part]))
        found.move(0.9)
    assert average.item() == pytest.approx(0.9 * 3 + 0.1 * 5) and found.steps == 2
    found.move(0.9)  # nothing was learned in between
    assert average.item() == pytest.approx(3.2) and found.steps == 3


def test_only_what_is_learned_from_is_looked_at(make_policy):
    policy = make_policy(lora=ADAPTER)
    statistics, rows = policy.own[prilora.OWN], [Row([1, 2, 3, 4], [[5, 6]], [0])]
    with torch.no_grad():
        score(policy, rows, 1.0)
    with policy.reference():
        score(policy, rows, 1.0)
    policy.measured = True
    score(policy, rows, 1.0)
    policy.measured = False
    policy.model(torch.tensor([[1, 2, 3]]))  # a layer that is computed again for its gradients, say
    assert not statistics.squares
    score(policy, rows, 1.0)
    modules = dict(prilora.adapted_modules(policy))
    assert statistics.squares.keys() == modules.keys() and len(modules) == 14
    first = min(modules)
    assert statistics.squares[first].shape == (modules[first].in_features,)


def test_layers_have_their_own_ranks_one_scale_and_are_loaded_back_by_peft(make_policy, tmp_path):
    policy = make_policy(lora=ADAPTER)
    for name, module in prilora.adapted_modules(policy):
        assert module.r["default"] == (2 if ".0." in name else 6) and module.scaling["default"] == 2.0
    fixed = make_policy(lora=plugins.load("lora", {"name": "prilora", "first": 2, "last": 6, "scale": "fixed_alpha"}))
    assert sorted({m.scaling["default"] for _, m in prilora.adapted_modules(fixed)}) == pytest.approx([4 / 3, 4.0])
    ids = torch.tensor([[1, 2, 3]])
    save_adapter(policy, tmp_path)
    with torch.no_grad():
        expected = policy.model(ids).logits
        again = PeftModel.from_pretrained(make_policy().model.unload(), tmp_path)
        torch.testing.assert_close(again(ids).logits, expected)


def test_pruning_comes_when_it_is_due_and_changes_nothing_while_b_is_zero(make_policy):
    policy, ids = make_policy(moved=False, lora=ADAPTER), torch.tensor([[1, 2, 3]])
    before = policy.model(ids).logits.detach()
    zeros = lambda: sum((m.lora_A["default"].weight == 0).sum().item()  # noqa: E731
                        for _, m in prilora.adapted_modules(policy))
    assert ADAPTER.after_step(policy, None) == {"pruned": 0.0} and zeros() == 0
    assert ADAPTER.after_step(policy, torch.optim.AdamW([torch.zeros(1)])) == {"pruned": 1.0}
    assert zeros() == sum(m.r["default"] * (m.in_features // 2) for _, m in prilora.adapted_modules(policy))
    torch.testing.assert_close(policy.model(ids).logits, before)  # B is zero


def test_a_share_of_one_is_refused_and_inputs_that_overflow_are_left_out():
    with pytest.raises(UserError, match="share"):
        plugins.load("lora", {"name": "prilora", "share": 1.0})
    found = prilora.Statistics({"a": 1}, torch.device("cpu"))
    for inputs in ([[2.0]], [[float("inf")]], [[4.0]]):
        found.see("a", torch.tensor(inputs))
        found.move(0.5)
    assert found.a.item() == 3.0 and found.steps == 3


def test_of_a_packed_row_what_is_learned_from_counts(make_policy):
    policy = make_policy(lora=ADAPTER)
    row = Row([1, 2, 3, 4], [[5, 6]], [0])
    score(policy, [row], 1.0)[0].sum().backward()
    name, module = next(prilora.adapted_modules(policy))
    found = policy.own[prilora.OWN].squares[name]
    with torch.no_grad():
        states = policy.trunk(input_ids=torch.tensor([[1, 2, 3, 4, 5]]), output_hidden_states=True).hidden_states[0]
        first = policy.trunk.layers[0].input_layernorm(states)[0, [3, 4]]  # the prompt's last, the completion's first
    torch.testing.assert_close(found, first.square().sum(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("moments", [False, True])
def test_moments_of_what_is_pruned_stay_unless_they_are_to_go(make_policy, moments):
    adapter = plugins.load("lora", {"name": "prilora", "first": 2, "last": 6, "interval": 1, "moments": moments})
    policy = make_policy(lora=adapter)
    optimizer = torch.optim.AdamW(policy.adapter_parameters().values(), lr=1e-3)
    score(policy, [Row([1, 2, 3, 4], [[5, 6]], [0])], 1.0)[0].sum().backward()
    optimizer.step()
    adapter.after_step(policy, optimizer)
    for _, module in prilora.adapted_modules(policy):
        weight = module.lora_A["default"].weight
        gone = optimizer.state[weight]["exp_avg"][weight == 0]
        assert len(gone) and (gone == 0).all() == moments


def test_layers_of_unequal_ranks_are_merged_by_their_own_scales(make_policy):
    policy, ids = make_policy(lora=ADAPTER), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = policy.model(ids).logits
        torch.testing.assert_close(policy.model.merge_and_unload()(ids).logits, expected, atol=1e-4, rtol=1e-4)
