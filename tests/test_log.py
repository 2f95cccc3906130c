"""Logs survive a crash and hold no step twice after a resume; a collapse, a gap between sampling and scoring and a run
that learns nothing are announced once, with their likely causes; the entropy that is logged is that of the policy."""

import json
import math

import pytest
import torch

from ranker import config as settings, log
from ranker.asking import sample_groups
from ranker.data import Answer, Completion, Group
from ranker.engine.sampler import Sampler
from ranker.errors import UserError, exit_status


def steps(values, key="reward"):
    return [{"step": i, key: value} for i, value in enumerate(values, 1)]


def announced(values, margin=0.3, patience=4, key="reward"):
    look = log.collapse(margin, patience)
    return [record["step"] for record in steps(values, key) if look(record)]


@pytest.mark.parametrize("values, at", [
    ([0.5] * 5 + [0.9] * 5 + [0.5] * 6, [14]),  # announced when the fourth low step is there, and not again
    ([0.9] * 5 + [0.5] * 3 + [0.9] + [0.5] * 3, []),  # never four in a row
    ([0.9] * 5 + [0.65] * 9, []),  # within the margin
    ([0.5] * 2 + [0.1] * 9, []),  # no mean of five steps was 0.3 above
    ([0.9] * 5 + [0.4] * 5 + [0.9] * 2 + [0.4] * 5, [9, 16]),
    ([0.9] * 5 + [None, math.nan] + [0.5] * 3 + [None, 0.5], [12]),  # steps in which nothing was scored say nothing
    ([0.2] * 9, []), ([0.9] * 3, []), ([], []),
])
def test_a_collapse_is_announced_once(values, at):
    assert announced(values) == at


def test_it_names_what_fell_and_why():
    [message] = filter(None, map(log.collapse(0.3, 4), steps([1.0] * 5 + [0.2] * 4, "parse_rate")))
    assert (message.startswith("collapse: parse_rate was 1.00 and has been below 0.70 for 4 steps")
            and "max_new_tokens" in message and "objective.beta" in message)


NORMAL = {"truncated": 0.1, "parse_rate": 0.9, "dead": 0.5, "reward": 0.5, "shortened": 0.0, "sampler_gap": 1e-6}
UNREAD, DEAD, SHORT = {"parse_rate": 0.0, "dead": 1.0}, {"dead": 1.0}, {"shortened": 0.6}
CUT = UNREAD | {"truncated": 1.0}
WORDS = {"every completion was cut off": "truncated", "no answer could be read": "unread",
         "all groups were dead": "dead", "texts were cut": "shortened", "sampling and scoring differ": "gap"}


def watched(*changes, bound=1e-3):
    """Return the signs after each of the steps, which are normal but for these changes."""
    look = log.watch(log.collapse(0.3, 99), bound)
    return [look({"step": step, **NORMAL, **change}) for step, change in enumerate(changes, 1)]


def spoken(*changes, bound=1e-3):
    """Return (step, sign) of what is announced, in order."""
    return [(step, name) for step, signs in enumerate(watched(*changes, bound=bound), 1)
            for text in signs.new for words, name in WORDS.items() if words in text]


@pytest.mark.parametrize("changes, said", [
    ([{}] * 9, []),
    ([CUT] * 20, [(5, "truncated")]), ([UNREAD] * 20, [(5, "unread")]),
    ([DEAD] * 20, [(5, "dead")]), ([SHORT] * 20, [(5, "shortened")]),
    ([CUT] * 4 + [{}] + [CUT] * 4, []),  # never five in a row
    ([CUT] * 6 + [{}] + [CUT] * 6, [(5, "truncated"), (12, "truncated")]),  # it had ended and came back
    ([CUT] * 6 + [UNREAD] * 9, [(5, "truncated"), (7, "unread")]),  # unread were all; the more specific sign has ended
    ([UNREAD] * 3 + [CUT, UNREAD] * 5, [(5, "unread")]),
    ([UNREAD] * 6 + [CUT] * 6, [(5, "unread"), (11, "truncated")]),  # now it is known why
    ([DEAD | {"reward": None}] * 9, []), ([DEAD | {"reward": math.nan}] * 9, []),  # nothing was scored
    ([DEAD | {"reward": 0.0}] * 9, [(5, "dead")]),
    ([CUT | SHORT] * 9, [(5, "truncated"), (5, "shortened")]),  # shorter texts may be needed beside anything
    ([{"shortened": 0.5}] * 9, []), ([{"truncated": 0.99, "parse_rate": 0.01, "dead": 0.99}] * 9, []),
])
def test_a_run_that_learns_nothing_says_why_once_while_it_lasts(changes, said):
    assert spoken(*changes) == said


WIDE, NARROW, UNKNOWN = {"sampler_gap": 2e-3}, {"sampler_gap": 5e-4}, {"sampler_gap": None}


@pytest.mark.parametrize("changes, said, stops", [
    ([NARROW] * 5, [], []), ([WIDE] * 4, [(1, "gap")], [3, 4]),
    ([WIDE, NARROW, WIDE, WIDE], [(1, "gap"), (3, "gap")], []),
    ([UNKNOWN] * 4, [], []), ([{"sampler_gap": math.nan}] * 4, [], []),
    ([WIDE, UNKNOWN, WIDE, UNKNOWN, WIDE], [(1, "gap")], [5]),  # a step that learned nothing says nothing about it
    ([{"sampler_gap": math.inf}] * 3, [(1, "gap")], [3]),
])
def test_sampling_that_differs_from_scoring_is_announced_and_stops_a_run_at_its_third_step(changes, said, stops):
    signs = watched(*changes)
    assert spoken(*changes) == said and [step for step, sign in enumerate(signs, 1) if sign.stop] == stops
    if stops:
        assert "in 3 steps in a row. Likely causes: " in signs[stops[0] - 1].stop and "in step 1." in signs[0].new[0]
        for name in ("rollout.weights=dense", "rollout.graph=false", "model.attention=sdpa", "plain LoRA"):
            assert name in signs[0].new[0]


def test_in_bfloat16_rounding_is_no_gap():
    assert spoken(*[{"sampler_gap": 0.03}] * 4, bound=log.GAP_BF16) == []
    assert spoken(*[{"sampler_gap": 0.2}] * 4, bound=log.GAP_BF16) == [(1, "gap")]


def test_notes_say_how_many_steps_showed_what_was_announced():
    signs = watched(*[CUT] * 6, {}, *[UNREAD] * 2, WIDE)
    assert [note.split(". ")[0] for note in signs[-1].notes] == [
        "nothing is learned: every completion was cut off in 6 of 10 steps",
        "sampling and scoring differ (sampler_gap above 0.001) in 1 of 10 steps"]
    assert signs[3].notes == [] and "in 5 of 5 steps" in signs[4].notes[0]
    look = log.watch(log.collapse(0.3, 4), 1e-3)
    look({"step": 0, "validation": {"mean": 0.5}})  # is no step
    rewards = [0.9] * 5 + [0.2] * 5
    fell = [look({"step": step, **NORMAL, "reward": reward, **SHORT}) for step, reward in enumerate(rewards, 1)]
    assert [signs.new[0][:16] for signs in fell if signs.new] == ["texts were cut i", "collapse: reward"]
    assert [note[:16] for note in fell[-1].notes] == ["collapse: reward", "texts were cut i"]
    assert "in 10 of 10 steps" in fell[-1].notes[1]


def test_a_resumed_run_counts_on_from_its_log(tmp_path):
    changes = [CUT | {"reward": math.nan}, CUT, UNREAD, CUT, UNREAD, WIDE, WIDE | {"x": math.inf}, DEAD | WIDE, {}]
    records, whole = [{"step": step, **NORMAL, **change} for step, change in enumerate(changes, 1)], watched(*changes)
    for kept in range(len(records)):
        log.append(tmp_path / f"{kept}.jsonl", records[:kept])
        look = log.watch(log.collapse(0.3, 99), 1e-3)
        for record in log.read(tmp_path / f"{kept}.jsonl"):
            look(record)
        assert [look(record) for record in records[kept:]] == whole[kept:]


def test_what_is_announced_fits_an_error_line_and_names_a_setting(capsys):
    for name, text in log.SIGNS.items():
        text = text.format(bound=log.GAP, when="in 1000 of 1000 steps")

        def stop():
            best, last = f"runs/iranker/best, in training: {text}", f"{text}; runs/iranker/last is saved"
            raise UserError(last if name == "gap" else best)
        assert exit_status(stop) == 2 and " ... " not in capsys.readouterr().err, name
        assert any(f"{section}." in text for section in ("rollout", "model", "objective", "data"))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_entropy_that_is_logged_is_that_of_the_distributions_sampled_from(make_policy, asks, temperature):
    policy = make_policy()
    groups = sample_groups(Sampler(policy, settings.Rollout(max_new_tokens=8)), asks[:2], 400, temperature)
    surprise, exact, other = [], [], []
    with torch.no_grad():
        for group in groups:
            rows = torch.tensor([group.prompt + c.ids + [0] * (8 - len(c.ids)) for c in group.completions])
            for c, logits in zip(group.completions, policy.model(rows).logits[:, len(group.prompt) - 1:-1]):
                logits = logits[:len(c.ids)]
                for t, found in ((temperature, exact), (1.7 - temperature, other)):
                    found += torch.distributions.Categorical(logits=logits / t).entropy().tolist()
                surprise += (logits / temperature).log_softmax(-1)[range(len(c.ids)), c.ids].neg().tolist()
    logged, mean = log.rollout_means(groups)["entropy"], sum(exact) / len(exact)
    assert logged == pytest.approx(sum(surprise) / len(surprise), abs=1e-5)
    error = (torch.tensor(surprise) - torch.tensor(exact)).std().item() / math.sqrt(len(exact))  # of the mean
    assert abs(logged - mean) < 3 * error < 0.03 * mean and abs(logged - sum(other) / len(other)) > 6 * error


def test_where_nothing_was_sampled_there_is_no_entropy(asks):
    trace, sampled = (Group(asks[0], [], [Completion([1, 2], logprobs, "", True, Answer("ok", asks[0].pool[:1]))])
                      for logprobs in ([math.nan] * 2, [-1.0, -3.0]))
    trace.completions[0].answer = Answer("missing_answer")
    assert log.rollout_means([trace])["parse_rate"] == 0 and log.rollout_means([sampled, trace])["parse_rate"] == 1
    assert "entropy" not in log.rollout_means([trace]) and log.rollout_means([sampled, trace])["entropy"] == 2.0


def test_best_is_the_best_in_the_strict_mean_and_of_equal_ones_in_the_repaired_one():
    means = [(0.9, 0.0), (0.4, 0.4), (0.5, 0.4), (0.8, 0.3)]
    found = [log.standing({"validation": {"mean": mean, "mean_strict": strict}}) for mean, strict in means]
    assert max(found) == found[2] and log.standing({"step": 3}) < min(found)


def test_a_line_that_was_cut_short_and_steps_to_come_again_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log.append(path, [{"step": 0, "x": "a\u2028b"}, {"step": 1, "x": math.nan}, {"step": 2, "x": 1.5}])
    with path.open("a") as file:
        file.write('{"step": 3, "x"')
    assert list(log.read(path)) == [{"step": 0, "x": "a\u2028b"}, {"step": 1, "x": None}, {"step": 2, "x": 1.5}]
    text = path.read_bytes()
    path.write_bytes(text + '{"step": 3, "x": "\u4e03'.encode()[:-1])  # in the middle of a character
    assert [r["step"] for r in log.read(path)] == [0, 1, 2]
    log.cut_after(path, 1)
    assert [json.loads(line)["step"] for line in path.read_text().split("\n") if line] == [0, 1]
    log.append(path, [{"step": 2}])
    assert [r["step"] for r in log.read(path)] == [0, 1, 2]


def drawn(folder, monkeypatch, count):
    """Label -> (steps, values) of the lines that are drawn of a run of `count` steps."""
    records = [{"step": step, "reward": float(step), "parse_rate": None if step == 3 else 1.0, "entropy": 0.5,
                **({"validation": {"mean": step / 2}} if step % 2 == 0 else {})} for step in range(count + 1)]
    (folder / "metrics.jsonl").write_text("".join(map(log.line, records)), encoding="utf-8")
    figures = []
    monkeypatch.setattr(log, "write_figure", lambda path, figure: figures.append(figure))
    log.curves(folder)
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for axis in figures[0].axes
            for line in axis.lines}


def test_curves_have_every_step_of_a_short_run_and_a_bounded_number_of_points_of_a_long_one(tmp_path, monkeypatch):
    short = drawn(tmp_path, monkeypatch, 8)
    assert short["reward"] == (list(range(9)), [sum(range(step + 1)) / (step + 1) for step in range(9)])
    assert short["entropy"] == (list(range(9)), [0.5] * 9)
    assert short["parse_rate"][0] == [0, 1, 2, 4, 5, 6, 7, 8] and short["mean"] == ([0, 2, 4, 6, 8], [0, 1, 2, 3, 4])
    monkeypatch.setattr(log, "POINTS", 5)
    long = drawn(tmp_path, monkeypatch, 19)
    # means of four steps, and of the points so far
    assert long["reward"] == ([3, 7, 11, 15, 19], [1.5, 3.5, 5.5, 7.5, 9.5])
    assert long["mean"] == ([0, 4, 8, 12, 16, 18], [0, 2, 4, 6, 8, 9])  # the last always
