"""model.think=false: no thought is asked for, the prompt begins the answer, and the policy learns right answers."""

import pytest

import evaluate
import train
from ranker import asking, drive, llms
from ranker.answers import parse
from ranker.config import Rollout
from ranker.data import Ask
from ranker.draws import right_answers
from ranker.engine.sampler import Sampler
from ranker.errors import UserError
from ranker.prompting import Prompter
from test_likelihood import query
from test_train import ROOT, call, records  # noqa: F401  a fixture

PREFILLED = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
             "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
ASK = Ask(query(), query().ids, "eliminate")


@pytest.mark.parametrize("template", [None, PREFILLED])
def test_the_prompt_begins_the_answer_and_a_completion_goes_on_with_it(tokenizer, template):
    direct, thinking = (Prompter(tokenizer, 1000, template, think) for think in (False, True))
    prompt, other = (tokenizer.decode(prompter.encode(ASK)) for prompter in (direct, thinking))
    assert prompt.endswith("<answer>") and "think inside" not in prompt and "think inside" in other
    closed = "<think>\n</think>\n<answer>" if template else "<answer>"
    assert direct.prefill.replace("\n", "") == closed.replace("\n", "") and thinking.begun == ""
    ids = direct.completion("<think>why</think>\n<answer>[2]</answer>")
    assert tokenizer.decode(ids) == "[2]</answer>"
    assert parse(direct.prefill + tokenizer.decode(ids), ASK).value == ("c1",)
    assert direct.encode(Ask(query(), query().ids, "order", by_logits=True)) != prompt  # and logits still have a place
    assert direct.identifier_tokens(4) == thinking.identifier_tokens(4)


def test_what_is_sampled_is_read_with_what_the_prompt_begins(make_policy):
    policy = make_policy(think=False)
    sampler = Sampler(policy, Rollout(max_new_tokens=12))
    [group] = asking.sample_groups(sampler, [ASK], 4, 1.0)
    assert all(c.text.startswith("<answer>") for c in group.completions)
    assert all(asking.answer_mask(policy, c.ids).all() for c in group.completions)
    [ranking] = drive.run(drive.load_ranker({"name": "elimination"}), [query()], asking.local_model(sampler))
    assert sorted(ranking.order) == sorted(query().ids)


def test_the_config_begins_with_right_answers_and_goes_on_with_samples(call, tmp_path):  # noqa: F811
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    options = ["--model.name=tiny", "--data.train=world", "--data.tasks=passage-5", "--train.steps=3",
               "--train.warmup=0", "--rollout.prompts_per_step=4", "--eval.every=3", "--eval.queries=2",
               "--model.device=cpu"]
    short = (ROOT / "configs/smollm2_direct.yaml").read_text().replace("steps: 50", "steps: 2")
    status, out, err = call(train, write("smollm2_direct.yaml", short), *options, "--dry_run")
    assert status == 0 and "<answer>[" in out and "<think>" not in out, err
    status, _, err = call(train, write("smollm2_direct.yaml", short), *options)
    assert status == 0, err
    texts = [r["text"] for r in records("runs/smollm2_direct/completions.jsonl")]
    assert len(texts) == 2 * 4 + 4 * 8 and all(t.startswith("<answer>") for t in texts)
    steps = records("runs/smollm2_direct/metrics.jsonl")
    assert steps[1]["reward"] == 1.0 and steps[1]["parse_rate"] == 1.0
    status, _, err = call(evaluate, "--ckpt", "runs/smollm2_direct/last", "--limit", 1, "--tasks", "passage-5")
    assert status == 0, err
    for changed, words in (("--model.think=true", "draw.name=right_answers writes no thought"),
                           ("--reward.format=0.1", "no thought is written, and reward format wants one")):
        status, _, err = call(train, "smollm2_direct.yaml", *options, "--run.dir=x", changed)
        assert status == 2 and words in err, err


class Drawn:
    """Hold what a draw needs to make right answers about the same question again and again."""

    def __init__(self, policy, decision):
        self.policy, self.decision, self.ranker = policy, decision, self
        self.rollout = Rollout(prompts_per_step=1)

    def sampled_asks(self, query, rng, size):
        return [Ask(query, query.ids[:1] if self.decision == "score" else query.ids, self.decision)]

    def seed(self, state):
        state["draws"] = state.get("draws", 0) + 1
        return state["draws"]

    def take(self, count, state):
        return [(0, query())]


@pytest.mark.parametrize("decision, said", [("score", {"0"}), ("eliminate", {"[1]", "[3]", "[4]"})])
def test_ties_are_drawn_among_candidates_and_a_number_stays_what_it_is(make_policy, decision, said):
    drawn, state = Drawn(make_policy(think=False), decision), {}
    groups = [right_answers.draw(drawn, drawn, lambda g: g, state, right_answers.Options())[0] for _ in range(30)]
    assert {g.completions[0].text.removeprefix("<answer>").removesuffix("</answer>") for g in groups} == said


def test_a_rehearsal_knows_the_asks_of_all_roles():
    cascade = drive.load_ranker({"name": "cascade", "first_role": "small", "second_role": "large"})
    assert {ask.role for ask in llms.rehearsal(cascade, query())} == {"small", "large"}


def test_a_trace_without_an_answer_is_an_error_in_one_line(make_policy):
    with pytest.raises(UserError, match="this one has none: 'c0 it is'"):
        make_policy(think=False).prompter.completion("c0 it is")


@pytest.mark.parametrize("name, file", [("smollm2_direct", "data/five.jsonl"), ("zooter", "runs/routing.jsonl")])
def test_a_file_that_is_made_first_is_refused_with_the_place_that_tells_how(call, name, file):  # noqa: F811
    config = str(ROOT / f"configs/{name}.yaml")
    told = f"error: {file} is not made yet; the first lines of {config} tell how\n"
    assert call(train, config)[0::2] == (2, told) and call(evaluate, "--config", config)[0::2] == (2, told)
    status, _, err = call(train, config, "--data.train=other.jsonl")  # of which the config says nothing
    assert status == 2 and err == "error: other.jsonl: No such file or directory\n"
    status, _, err = call(evaluate, "--config", config, "--data", "other.jsonl")  # ranked without the config's files
    assert status == 2 and err == "error: other.jsonl: No such file or directory\n"
