"""Every broken file in bad_inputs/, one defect each, ends as a user should see it: exit status 2, one short line that
says what and where, no traceback, nothing left behind and nothing changed. `expected.txt` names each with words of its
line."""

import json
import os
import pickle
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_prompting import forget

import evaluate
import train
from ranker import config as settings, templates
from ranker.errors import exit_status

HERE = Path(__file__).parent / "bad_inputs"
CONFIG = Path(__file__).resolve().parents[1] / "configs/iranker.yaml"
CASES = dict(line.split("\t") for line in (HERE / "expected.txt").read_text(encoding="utf-8").splitlines())
HAT = ('{"id": "q1", "task": "rank", "context": "warm", "candidates": [{"id": "a", "text": "wool"}, {"id": "b", '
       '"text": "felt"}], "relevance": [1, 2]}\n')
TREC = {"run.txt": "q1 Q0 d1 1 3.0 tag\nq1 Q0 d2 2 2.0 tag\nq1 Q0 d3 3 1.0 tag\nq2 Q0 d1 1 9 tag\nq2 Q0 d2 2 8 tag\n",
        "qrels.txt": "q1 0 d1 1\nq2 0 d2 1\n",
        "corpus.json": json.dumps([{"query": q, "hits": [{"qid": q, "docid": d, "content": f"text {d}"}
                                                         for d in ("d1", "d2", "d3")]} for q in ("q1", "q2")])}


def on_cpu(*arguments):
    return train, [*arguments, "--model.device=cpu"]


def commands(kind: str, name: str):
    """How a user would meet the file `name`: (script, arguments) pairs."""
    world = ["--config", "iranker.yaml", "--tasks", "passage-5", "--limit", 1, "--model.device=cpu"]
    trec = ["--run", "run.txt", "--qrels", "qrels.txt"]
    return {
        "configs": [on_cpu(name)],
        "data": [on_cpu("iranker.yaml", f"--data.train={name}"), (evaluate, ["--data", name, "--baselines"])],
        "checkpoints": [on_cpu("iranker.yaml", "--run.dir=runs/kept")] if name.startswith("resumed-") else
                       [(evaluate, ["--ckpt", name, "--tasks", "passage-5", "--limit", 1])],
        "prompts": [on_cpu("iranker.yaml", "--data.tasks=passage-5") if "field" in name else (evaluate, world)],
        "recorded": [(evaluate, [*trec, "--corpus", "corpus.json", "--replay", name, "--window", 2, "--step", 1])],
        "runs": [(evaluate, ["--run", name, *trec[2:], "--corpus", "corpus.json"])],
        "qrels": [(evaluate, [*trec[:2], "--qrels", name])],
        "thoughts": [(evaluate, [*world, "--thoughts", name])],
    }[kind]


@pytest.fixture(autouse=True)
def nothing_trains_or_ranks(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the mistake came to light only after work had begun")
    monkeypatch.setattr("ranker.engine.sampler.Sampler.__call__", refuse)
    monkeypatch.setattr("ranker.engine.exact.check", lambda *arguments: None)  # which samples a few tokens


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the user stands: a config, a data file, notes, and a run that was stopped after step 2."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(CONFIG, "iranker.yaml")
    Path("hats.jsonl").write_text(HAT)
    Path("notes").mkdir(), Path("notes/todo.txt").write_text("rank hats\n")
    for name, text in TREC.items():
        Path(name).write_text(text)
    Path("runs/kept/checkpoints").mkdir(parents=True)
    config = settings.load("iranker.yaml", ["--run.dir=runs/kept", "--model.device=cpu"])
    Path("runs/kept/config.yaml").write_text(settings.as_yaml(config))
    Path("runs/kept/metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    Path("runs/kept/lock").write_text("1")
    return tmp_path


@pytest.fixture
def fresh_prompts():
    """Prompts are read once a process; what was read before and after is forgotten."""
    forget()
    yield
    forget()


def place(case: str, monkeypatch) -> tuple[str, str]:
    """Put the broken file where it would stand; its kind and the name it then has."""
    kind, _, name = case.partition("/")
    if kind == "prompts":  # such as eliminate-without-pool.txt: a prompts/eliminate.txt
        shutil.copytree(templates.FOLDER, "prompts")
        shutil.copy(HERE / case, f"prompts/{name.partition('-')[0]}{Path(name).suffix}")
        monkeypatch.setattr(templates, "FOLDER", Path("prompts"))
    elif name.startswith("resumed-"):
        shutil.copytree(HERE / case, "runs/kept/checkpoints/step_2")
        os.symlink("checkpoints/step_2", "runs/kept/last")
    else:
        (shutil.copytree if (HERE / case).is_dir() else shutil.copy)(HERE / case, name)
    return kind, name


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes, every link's target, every folder."""
    return {str(p.relative_to(folder)): os.readlink(p) if p.is_symlink()
            else p.read_bytes() if p.is_file() else "folder" for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_file_ends_in_one_line_and_leaves_all_as_it_was(case, folder, fresh_prompts, monkeypatch, capsys):
    kind, name = place(case, monkeypatch)
    before = snapshot(folder)
    for module, arguments in commands(kind, name):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        status = exit_status(module.main)
        errors = capsys.readouterr().err
        lines = [line for line in errors.splitlines() if line.startswith("error:")]
        assert status == 2 and len(lines) == 1 and CASES[case] in lines[0] and "Traceback" not in errors, errors
        assert len(lines[0]) <= 300 and lines[0].isprintable()
        assert snapshot(folder) == before
    assert not Path("it-ran").exists()


def test_the_index_names_every_file_of_every_kind():
    found = {str(path.relative_to(HERE)) for path in HERE.glob("*/*")}
    assert found == CASES.keys() and len(found) >= 120
    assert min(Counter(case.split("/")[0] for case in found).values()) >= 5


def test_the_bombs_would_write_a_file_if_they_were_unpickled(folder):
    """Else their silence would show nothing."""
    pickle.loads((HERE / "checkpoints/weights-are-pickled/adapter_model.bin").read_bytes())
    assert Path("it-ran").exists()
