"""Rules of the house that a program can check: lengths, names, and who knows whom."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from ranker import plugins

ROOT = Path(__file__).resolve().parents[1]
CODE = [path for folder in (".", "ranker", "rewards", "tests") for path in sorted((ROOT / folder).glob(
    "*.py" if folder == "." else "**/*.py"))]
SOURCE = [path for path in CODE if "tests" not in path.parts]


def functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def test_no_line_of_code_is_longer_than_120_columns():
    long = [f"{path.relative_to(ROOT)}:{n}" for path in CODE
            for n, line in enumerate(path.read_text().split("\n"), 1) if len(line) > 120]
    assert not long


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_the_scripts_are_read_in_one_sitting(script):
    path = ROOT / script
    assert len(path.read_text().split("\n")) <= 261
    assert max(f.end_lineno - f.lineno + 1 for f in functions(path)) <= 60


def test_the_readme_has_at_most_170_lines():
    assert len((ROOT / "README.md").read_text().rstrip().split("\n")) <= 170


def test_no_two_modules_share_a_name():
    found = defaultdict(list)
    for path in SOURCE:
        if not path.stem.startswith("__"):
            found[path.stem].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


@pytest.mark.parametrize("file", ["config.py", "checks.py", "plugins.py", "run.py", "stages.py", "passes.py"])
def test_what_serves_all_plug_ins_names_none(file):
    """As a string, that is: `draw.name == "recorded"` anywhere but in the plug-in itself is a seam that leaks."""
    strings = {node.value for node in ast.walk(ast.parse((ROOT / "ranker" / file).read_text()))
               if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    kinds = ("ranker", "draw", "objective", "lesson", "reward", "decision")
    assert not strings & {name for kind in kinds for name in plugins.names(kind)}


def test_train_py_names_no_plug_in_either():
    text = (ROOT / "train.py").read_text()
    names = {name for kind in ("draw", "objective", "lesson") for name in plugins.names(kind)}
    assert not [name for name in names if re.search(rf"[\"']{name}[\"']", text)]


def test_rewards_and_losses_import_no_model_code_and_nothing_imports_the_scripts():
    imports = {path: re.findall(r"^\s*(?:from|import) (\S+)", path.read_text(), re.MULTILINE) for path in SOURCE}
    for path, names in imports.items():
        if path.parent.name == "rewards" or path.name == "losses.py":
            assert not [name for name in names if name.startswith("ranker.engine")], path
        assert not {"train", "evaluate"} & set(names), path


def test_every_plug_in_keeps_its_contract():
    for kind in plugins.FOLDERS:
        for name in plugins.names(kind):
            assert plugins.module(kind, name).__doc__
