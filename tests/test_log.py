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
