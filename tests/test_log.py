"""Logs survive a crash, hold no step twice after a resume, and a collapse is announced once, with its likely causes."""

import json
import math

import pytest

from ranker import log


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
    assert message.startswith("collapse: parse_rate was 1.00 and has been below 0.70 for 4 steps") and "max_new_tokens" in message and "train.beta" in message


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
    records = [{"step": step, "reward": float(step), "parse_rate": None if step == 3 else 1.0, **({"validation": {"mean": step / 2}} if step % 2 == 0 else {})}
               for step in range(count + 1)]
    (folder / "metrics.jsonl").write_text("".join(map(log.line, records)), encoding="utf-8")
    figures = []
    monkeypatch.setattr(log, "write_figure", lambda path, figure: figures.append(figure))
    log.curves(folder)
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for axis in figures[0].axes for line in axis.lines}


def test_curves_have_every_step_of_a_short_run_and_a_bounded_number_of_points_of_a_long_one(tmp_path, monkeypatch):
    short = drawn(tmp_path, monkeypatch, 8)
    assert short["reward"] == (list(range(9)), [sum(range(step + 1)) / (step + 1) for step in range(9)])
    assert short["parse_rate"][0] == [0, 1, 2, 4, 5, 6, 7, 8] and short["mean"] == ([0, 2, 4, 6, 8], [0, 1, 2, 3, 4])
    monkeypatch.setattr(log, "POINTS", 5)
    long = drawn(tmp_path, monkeypatch, 19)
    assert long["reward"] == ([3, 7, 11, 15, 19], [1.5, 3.5, 5.5, 7.5, 9.5])  # means of four steps, and of the points so far
    assert long["mean"] == ([0, 4, 8, 12, 16, 18], [0, 2, 4, 6, 8, 9])  # the last always
