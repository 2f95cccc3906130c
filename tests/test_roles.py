"""Roles, samples and temperature: who answers an ask, how often, and what that cost."""

import random
from dataclasses import dataclass, replace

import pytest

from ranker import config as settings, credit, drive, llms, plugins, rewarding, world
from ranker.asking import load_models, local_model
from ranker.answers import parse
from ranker.data import Ask, Candidate, Completion, Group, Query
from ranker.engine import policy as policies
from ranker.engine.sampler import Sampler
from ranker.errors import UserError
from ranker.evaluation import report
from ranker.rankers import cascade

PERFECT = llms.scripted(llms.right_answer)
WRONG = llms.scripted(llms.wrong_answer)


def query(n, name="q"):
    relevance = list(range(n))
    random.Random(name).shuffle(relevance)
    return Query(name, "rank", "c", tuple(Candidate(f"c{i}", f"text {i}") for i in range(n)),
                 tuple(map(float, relevance)))


def best_first(ranking):
    return ranking.gains == sorted(ranking.gains, reverse=True)


def test_a_cascade_asks_each_role_for_its_part_and_its_cost_is_told_by_role():
    ranker = drive.load_ranker({"name": "cascade", "first": {"name": "listwise"}, "second": {"name": "elimination"},
                                "first_role": "small", "depth": 4})
    [ranking] = drive.run(ranker, [query(9)], {"small": PERFECT, "policy": WRONG})
    assert {role: cost.calls for role, cost in ranking.roles.items()} == {"small": 1, "policy": 3}
    assert ranking.calls == 4 == ranker.calls(9)
    assert ranking.gains == [5.0, 6.0, 7.0, 8.0, 4.0, 3.0, 2.0, 1.0, 0.0]  # the head is reversed, the tail kept
    asks = ranker.sampled_asks(query(9), random.Random(0), None)
    assert [ask.decision for ask in asks] == ["eliminate"]
    shown = report.cost_table([report.model_row("cascade", [[ranking]], 0.0)]).split("\n")
    assert ([line.split("|")[1:3] for line in shown[2:]]
            == [[" cascade         ", "   4.0 "], [" cascade: small  ", "   1.0 "], [" cascade: policy ", "   3.0 "]])


def test_a_hybrid_mixes_two_rankers_in_the_rounds_of_the_longer_one():
    def mixed(weight):
        return drive.load_ranker({"name": "hybrid", "first": {"name": "listwise"}, "second": {"name": "elimination"},
                                  "weight": weight, "first_role": "small"})

    driver = drive.Driver(mixed(0.9), {"small": PERFECT, "policy": WRONG})
    ranking = driver.add(query(6))
    while driver.running:
        driver.round()
    assert best_first(ranking) and driver.rounds == 5 and ranking.calls == 6
    assert list(ranking.scores) == ranking.order and sorted(ranking.scores.values(), reverse=True) == list(
        ranking.scores.values())
    [other] = drive.run(mixed(0.1), [query(6)], {"small": PERFECT, "policy": WRONG})
    assert other.gains == sorted(other.gains)


def test_two_adapters_on_one_base_play_their_roles(make_policy, tmp_path):
    other = make_policy(lora=plugins.load("lora", {"name": "lora", "rank": 2}))
    policies.save_adapter(other, tmp_path / "other")
    policy = make_policy()
    config = settings.Config(roles={"small": {"adapter": str(tmp_path / "other"), "llm": {}}})
    config.rollout.max_new_tokens = 8
    sampler = Sampler(policy, config.rollout)
    models = load_models(config, sampler, tmp_path) | {"policy": local_model(sampler)}
    asks = [Ask(world.query("passage-5", "train", i), world.query("passage-5", "train", i).ids, "pick")
            for i in range(3)]
    texts = {role: [c.ids for _, c in models[role](asks)] for role in ("small", "policy", "base")}
    alone = local_model(Sampler(other, config.rollout))
    assert texts["small"] == [c.ids for _, c in alone(asks)] != texts["policy"]
    assert (texts["policy"] == [c.ids for _, c in local_model(Sampler(make_policy(), config.rollout))(asks)]
            != texts["base"])
    ranker = drive.load_ranker({"name": "cascade", "first": {"name": "listwise"}, "second": {"name": "elimination"},
                                "first_role": "small", "depth": 3})
    [ranking] = drive.run(ranker, [asks[0].query], models)
    assert {role: cost.calls for role, cost in ranking.roles.items()} == {"small": 1, "policy": 2}
    assert set(policy.adapter_parameters()) == set(make_policy().adapter_parameters())  # the policy alone is trained
    policies.save_adapter(policy, tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["adapter_config.json",
                                                                      "adapter_model.safetensors"]
    assert (tmp_path / "saved/adapter_model.safetensors").stat().st_mode & 0o777 == 0o644


def test_one_ask_may_want_twenty_different_samples(make_policy):
    policy, asked = make_policy(), world.query("passage-5", "train", 0)
    sampler = Sampler(policy, settings.Rollout(max_new_tokens=6))
    wanted = Ask(asked, asked.ids, "pick", samples=20, temperature=1.0)
    seen, prompts = [], []
    inner = sampler._prefill
    sampler._prefill = lambda given, known: prompts.append(len(given)) or inner(given, known)

    def asking():
        seen.append((yield wanted))
        seen.append((yield replace(wanted, samples=1, temperature=0.0)))
        return "done"

    assert drive.converse(asking(), local_model(sampler, seed=1)) == "done"
    twenty, likeliest = seen
    assert len(twenty) == 20 and len({answer.text for answer in twenty}) > 10 and isinstance(likeliest.text, str)
    assert prompts == [1, 1]  # the prompt of twenty samples is computed once
    again, other = ([c.ids for _, c in local_model(sampler, seed=seed)(drive.expanded(wanted))] for seed in (1, 2))
    assert [parse(policy.tokenizer.decode(ids), wanted).text for ids in again] and again != other
    assert [policy.tokenizer.decode(ids) for ids in again] == [answer.text for answer in twenty]


def test_a_reward_may_ask_a_judge_and_its_words_are_told_harmless(monkeypatch, asks):
    """A reward that is a generator: the judge scores each completion, whose text it is told."""
    @dataclass
    class Options:
        pass

    def reward(groups, options):
        judged = [[Ask(g.ask.query, g.ask.pool[:1], "score", role="judge", told=(("chain", c.text),))
                   for c in g.completions] for g in groups]
        answers = iter((yield [ask for row in judged for ask in row]))
        return [[next(answers).value[0] / 10 for _ in row] for row in judged]

    module = type("Module", (), {"TASK": True, "Options": Options, "reward": staticmethod(reward)})
    part = rewarding.Part(plugins.Plugin("reward", "judged", module, Options()), 2.0)
    told = []

    def judge(asked):
        told.extend(dict(ask.told)["chain"] for ask in asked)
        return llms.scripted(lambda ask: f"<answer>{len(dict(ask.told)['chain'])}</answer>")(asked)

    groups = [Group(asks[0], [], [Completion([], [], text, True, parse(text, asks[0])) for text in ("a", "bb")])]
    rewarding.score([part], groups, {"judge": judge})
    assert part.asks and told == ["a", "bb"]
    assert [c.rewards["total"] for c in credit.completions(groups)] == [0.2, 0.4]
    with pytest.raises(UserError, match="nobody plays the role 'judge'"):
        rewarding.score([part], groups, {"policy": judge})


def test_queries_may_join_between_rounds():
    ranker, asked = drive.load_ranker({"name": "elimination"}), []
    model = lambda asks: asked.append([ask.query.id for ask in asks]) or PERFECT(asks)  # noqa: E731
    driver = drive.Driver(ranker, model)
    first = driver.add(query(4, "first"))
    driver.round()
    second = driver.add(query(3, "second"))
    while driver.running:
        driver.round()
    assert asked == [["first"], ["first", "second"], ["first", "second"]]
    assert best_first(first) and best_first(second)
    assert second.order == drive.run(ranker, [query(3, "second")], PERFECT)[0].order


def test_a_role_that_nobody_plays_is_named_with_the_nearest():
    ranker = drive.load_ranker({"name": "cascade", "second_role": "smal"})
    with pytest.raises(UserError, match="nobody plays the role 'smal' .did you mean 'small'"):
        drive.run(ranker, [query(4)], {"policy": PERFECT, "small": PERFECT})


def test_a_role_is_an_adapter_or_a_server(tmp_path):
    def refused(roles):
        with pytest.raises(UserError) as error:
            settings.build({"roles": roles}, "my.yaml")
        return str(error.value)

    assert "needs either adapter" in refused({"judge": {}})
    assert "unknown key 'roles.judge.adaptor' (did you mean 'adapter'?)" in refused({"judge": {"adaptor": "x"}})
    assert "unknown key 'roles.judge.llm.modle'" in refused({"judge": {"llm": {"modle": "x"}}})
    config = settings.build({"roles": {"judge": {"llm": {"api": "http://127.0.0.1:1/v1"}}}}, "my.yaml")
    with pytest.raises(UserError, match="needs both roles.judge.llm.api"):
        settings.check(config, "my.yaml")


def test_played_gives_every_ask_the_role_and_returns_ids():
    def asking():
        yield [Ask(query(2), ("c0", "c1"), "pick")]
        yield Ask(query(2), ("c0", "c1"), "pick")
        return [("c1", 2.0), ("c0", 1.0)]

    talk = cascade.played(asking(), "judge")
    assert [ask.role for ask in next(talk)] == ["judge"] and talk.send([None]).role == "judge"
    with pytest.raises(StopIteration) as stop:
        talk.send(None)
    assert stop.value.value == ["c1", "c0"]


def test_a_role_is_given_on_the_command_line_key_by_key(tmp_path):
    (tmp_path / "c.yaml").write_text("roles:\n  judge: {adapter: old}\n")
    config = settings.load(tmp_path / "c.yaml", [
        "--roles.large.llm.api=http://127.0.0.1:1/v1", "--roles.large.llm.model=m", "--roles.judge.adapter=new"])
    assert config.roles["judge"] == {"adapter": "new", "llm": {}}
    assert config.roles["large"]["adapter"] == "" and config.roles["large"]["llm"]["model"] == "m"
    assert config.roles["large"]["llm"]["api"] == "http://127.0.0.1:1/v1"


def test_a_hybrid_passes_on_what_a_ranker_says_of_itself():
    graded = {"name": "orderchain", "classes": 4}
    ranker = drive.load_ranker({"name": "hybrid", "first": graded, "second": {"name": "pointwise",
                                                                                      "score": "written"}})
    upper = llms.scripted(lambda ask: f"<answer>{dict(ask.told).get('upper', '7')}</answer>")
    [ranking] = drive.run(ranker, [query(4)], upper)
    assert sorted(ranking.order) == sorted(query(4).ids) and ranking.notes["wrong at level 1"] > 0
