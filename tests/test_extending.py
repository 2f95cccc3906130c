"""The examples of docs/extending.md, run as they are printed: each is one file (and a template), and nothing else
changes."""

import importlib
import re
import shlex
import shutil
import sys

import pytest

import evaluate
import train
from ranker import plugins, templates
from test_train import ROOT, SHORT, call  # noqa: F401  `call` is a fixture

TEXT = (ROOT / "docs/extending.md").read_text()
BLOCKS = dict(re.findall(r"```(?:python|text)\n# (\S+)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^    (\.venv/bin/python .*)$", TEXT, re.MULTILINE)]
PACKAGES = sorted({path.rpartition("/")[0].replace("/", ".") for path in BLOCKS if path.endswith(".py")})


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The files of the page, where the loader finds them."""
    for path, text in BLOCKS.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    before = set(sys.modules)
    for package in map(importlib.import_module, PACKAGES):
        monkeypatch.setattr(package, "__path__",
                            [*package.__path__, str(tmp_path / package.__name__.replace(".", "/"))])
    plugins.module.cache_clear()
    shutil.copytree(templates.FOLDER, tmp_path / "prompts", dirs_exist_ok=True)
    monkeypatch.setattr(templates, "FOLDER", tmp_path / "prompts")
    templates.use(None)
    yield
    monkeypatch.undo()
    templates.use(None)
    plugins.module.cache_clear()
    for name in set(sys.modules) - before:
        if name.rpartition(".")[0] in PACKAGES:
            del sys.modules[name]


def test_an_example_has_at_most_25_lines_of_at_most_120_columns():
    assert sorted(PACKAGES) == ["ranker.decisions", "ranker.draws", "ranker.objectives", "ranker.rankers", "rewards"]
    for path, text in BLOCKS.items():
        lines = text.rstrip().split("\n")
        assert len(lines) <= 25 and max(map(len, lines)) <= 120, path


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[2:4]))
def test_a_command_of_the_page_runs(command, written, call):  # noqa: F811
    script, *words = command
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    short = [*SHORT, "--train.steps=1", "--train.warmup=0"] if script == "train.py" else ["--data.tasks=passage-5"]
    status, _, error = call(train if script == "train.py" else evaluate, words[0], *words[1:], *short)
    assert status == 0, error
