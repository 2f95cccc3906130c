"""Settings arrive as the type their field has, whatever YAML made of them, and a mistake ends in one line that says
where it stands, what it is called and what was probably meant. Reward weights can't let form outweigh the task."""

import dataclasses
import sys
from pathlib import Path

import pytest
import yaml

from ranker import config, plugins, rewarding, world
from ranker.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def write(tmp_path, text, name="my.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def complaint(action, *args) -> str:
    with pytest.raises(UserError) as caught:
        action(*args)
    return str(caught.value)


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "'1e-5'", "0.00001", "1E-5"])
def test_a_learning_rate_arrives_as_the_number_however_yaml_read_it(tmp_path, written):
    lr = config.load(write(tmp_path, f"train:\n  lr: {written}\n")).train.lr
    assert lr == 1e-5 and type(lr) is float


def test_numbers_take_the_type_of_their_field(tmp_path):
    loaded = config.load(write(tmp_path, "train: {steps: 1e3, lr: 1}\nobjective: {beta: 1}\nlora: {alpha: '16'}\n"))
    assert loaded.train.steps == 1000 and type(loaded.train.steps) is int and type(loaded.train.lr) is float
    assert type(loaded.objective["beta"]) is float and loaded.lora["alpha"] == 16.0 and type(loaded.lora["rank"]) is int


def test_an_empty_file_gives_the_defaults_and_a_folder_named_after_it(tmp_path):
    loaded, defaults = config.load(write(tmp_path, "", "first_try.yaml")), config.Config()
    config.resolve(defaults, "defaults")
    assert loaded.run.dir == "runs/first_try"
    assert dataclasses.replace(loaded, run=config.Run()) == defaults
    names = [getattr(loaded, section)["name"] for section in plugins.SECTIONS]
    assert names == ["elimination", "sampled", "grpo", "lora"]
    assert loaded.reward == {"top1_hit": {"weight": 1.0, "tasks": [], "graded": False}}


def test_two_configs_share_no_mutable_default():
    one, two = config.Config(), config.Config()
    one.data.tasks.append("rec-movie"), one.reward.update(format=0.1), one.draw.update(refills=3)
    one.data.lessons.append({"name": "teacher"}), one.roles.update(judge={})
    assert two.data.tasks == two.data.lessons == [] and "format" not in two.reward
    assert "refills" not in two.draw and two.roles == {}


@pytest.mark.parametrize("text, read, value", [
    ("--train.lr=1e-4", lambda c: c.train.lr, 1e-4),
    ("train.lr=1e-4", lambda c: c.train.lr, 1e-4),
    ("--train.steps=7", lambda c: c.train.steps, 7),
    ("--model.gradient_checkpointing=true", lambda c: c.model.gradient_checkpointing, True),
    ("--model.quantize=none", lambda c: c.model.quantize, "none"),
    ("--data.tasks=rec-movie, passage-5", lambda c: c.data.tasks, ["rec-movie", "passage-5"]),
    ("--data.tasks=[rec-movie]", lambda c: c.data.tasks, ["rec-movie"]),
    ("--data.train=some/file=1.jsonl", lambda c: c.data.train, "some/file=1.jsonl"),
    ("--data.test=", lambda c: c.data.test, ""),
    ("--reward.format=0.1", lambda c: c.reward["format"], {"weight": 0.1, "tasks": []}),
    ("--reward.format.weight=0.1", lambda c: c.reward["format"], {"weight": 0.1, "tasks": []}),
    ("--reward.format.tasks=rank", lambda c: c.reward["format"], {"weight": 1.0, "tasks": ["rank"]}),
    ("--reward.top1_hit.graded=true", lambda c: c.reward["top1_hit"], {"weight": 2.0, "tasks": [], "graded": True}),
    ("--objective.beta=1e-2", lambda c: c.objective["beta"], 0.01),
    ("--objective.name=rloo", lambda c: c.objective, {"name": "rloo", "beta": 0.0, "min_spread": 1e-4}),
    ("--data.lessons.teacher.run=b.trec", lambda c: c.data.lessons, [{"name": "teacher", "run": "b.trec"}]),
])
def test_the_command_line_has_the_last_word(tmp_path, text, read, value):
    file = ("train: {lr: 3, steps: 5}\ndata: {train: d.jsonl, test: a.jsonl, tasks: [rec-game], "
            "lessons: [{name: teacher, run: a.trec}]}\nreward: {top1_hit: {weight: 2.0}}\nobjective: {beta: 0.1}\n")
    path = write(tmp_path, file)
    assert read(config.load(path, [text])) == value


@pytest.mark.parametrize("text, words", [
    ("trian: {lr: 1}", ["unknown section 'trian'", "did you mean 'train'?"]),
    ("train: {leraning_rate: 1, lr: 1}", ["unknown key 'train.leraning_rate'", "known:", "lr"]),
    ("train: {step: 1}", ["unknown key 'train.step'", "did you mean 'steps'?"]),
    ("rollout: {temprature: 1}", ["unknown key 'rollout.temprature'", "did you mean 'temperature'?"]),
    ("train: {steps: many}", ["train.steps must be a number", "'many'"]),
    ("train: {steps: 2.5}", ["train.steps must be a whole number", "2.5"]),
    ("train: {steps: true}", ["train.steps must be a number", "True"]),
    ("train: {lr: .nan}", ["train.lr must be a number"]),
    ("train: {lr: .inf}", ["train.lr must be a number"]),
    ("train: {lr: [1]}", ["train.lr must be a number"]),
    ("train: {lr:}", ["train.lr must be a number", "None"]),
    ("train: {steps: 0}", ["train.steps must be at least 1", "0"]),
    ("objective: {clip_low: 1.5}", ["objective.clip_low must be between 0.0 and 1.0"]),
    ("lora: {rank: 0}", ["lora.rank must be at least 1"]),
    ("objective: {kl: k4}", ["objective.kl must be one of k2, k3", "did you mean"]),
    ("objective: {betta: 1}", ["objective 'grpo' has no option 'betta'", "did you mean 'beta'?"]),
    ("ranker: {name: sliding, widow: 4}", ["ranker 'sliding' has no option 'widow'", "did you mean 'window'?"]),
    ("objective: {refills: 2}", ["objective 'grpo' has no option 'refills'; it is now draw.refills"]),
    ("train: {clip_low: 0.1}", ["unknown key 'train.clip_low'; it is now objective.clip_low, an option of grpo, ppo"]),
    ("train: {objective: ppo}", ["unknown key 'train.objective'; it is now objective.name"]),
    ("rollout: {traces: f}", ["unknown key 'rollout.traces'; it is now draw.traces, an option of recorded"]),
    ("objective: {name: ppo}", ["objective needs its option 'value_lr'", "--objective.value_lr=value"]),
    ("data: {lessons: [{name: teacher}]}", ["lesson needs its option 'run'"]),
    ("data: {lessons: [{run: f}]}", ["lesson.name must be text", "None"]),
    ("data: {lessons: [teacher]}", ["data.lessons must be a list of sections"]),
    ("draw: {name: [sampled]}", ["draw.name must be text", "['sampled']"]),
    ("rollout: {temperature: 0}", ["rollout.temperature must be between 0.01 and 10.0"]),
    ("rollout: {completions_per_prompt: 1}", ["rollout.completions_per_prompt must be at least 2 for grpo"]),
    ("model: {name: 7}", ["model.name must be text", "7", "quote"]),
    ("model: {quantize: no}", ["model.quantize must be text", "False"]),
    ("model: {gradient_checkpointing: 1}", ["model.gradient_checkpointing must be true or false"]),
    ("model: {quantize: nf5}", ["model.quantize must be one of auto, none, nf4", "did you mean 'nf4'?"]),
    ("train: {schedule: cosin}", ["train.schedule must be one of", "did you mean 'cosine'?"]),
    ("data: {tasks: [1, 2]}", ["data.tasks must be a list of names"]),
    ("ranker: {name: 7}", ["ranker.name must be text", "7"]),
    ("ranker: {name: eliminaton}", ["unknown ranker 'eliminaton'", "did you mean 'elimination'?"]),
    ("objective: {name: gpro}", ["unknown objective 'gpro'", "did you mean 'grpo'?"]),
    ("train: {steps: 10, warmup: 10}", ["train.warmup (10) must be below train.steps (10)"]),
    ("train: 3", ["section 'train' must hold keys"]),
    ("[1, 2]", ["expected sections", "list"]),
    ("train: {lr: 1", ["not YAML"]),
    ("train: !!python/object/apply:os.getcwd []", ["not YAML"]),
])
def test_a_mistake_in_the_file_names_file_and_key_and_what_was_meant(tmp_path, text, words):
    path = write(tmp_path, text)
    message = complaint(config.load, path)
    assert message.startswith(f"{path}: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize("text, words", [
    ("--trian.lr=1", ["command line", "unknown section 'trian'", "did you mean 'train'?"]),
    ("--train.lrr=1", ["command line", "unknown key 'train.lrr'", "did you mean 'lr'?"]),
    ("--train.lr.x=1", ["command line", "unknown key 'train.lr.x'"]),
    ("--train.clip_low=0.1", ["command line", "'train.clip_low'; it is now objective.clip_low"]),
    ("--rollout.states=recorded", ["command line", "'rollout.states'; it is now draw.name"]),
    ("--data.teacher=f", ["command line", "'data.teacher'; it is now a lesson: --data.lessons.teacher.OPTION=value"]),
    ("--roles.judge=f", ["command line: write --roles.NAME.adapter=FOLDER or --roles.NAME.llm.KEY=value"]),
    ("--roles.judge.llm.modle=f", ["command line: unknown key 'roles.judge.llm.modle'", "did you mean 'model'?"]),
    ("--stages.steps=3", ["command line: stages are changed in the file"]),
    ("--train.lr=fast", ["command line", "train.lr must be a number"]),
    ("--train.lr=", ["command line", "train.lr must be a number"]),
    ("--train.lr=[", ["command line", "--train.lr=["]),
    ("--reward.top1_hit.graded.x=1", ["command line", "too many parts"]),
    ("--train.lr", ["'--train.lr' is no setting", "--section.key=value"]),
    ("--lr=1", ["'--lr=1' is no setting"]),
])
def test_a_mistake_on_the_command_line_says_so(tmp_path, text, words):
    message = complaint(config.load, write(tmp_path, ""), [text])
    for word in words:
        assert word in message


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path):
    write(tmp_path, "", "iranker.yaml")
    message = complaint(config.load, tmp_path / "iranke.yaml")
    assert str(tmp_path / "iranke.yaml") in message and "did you mean 'iranker'?" in message
    assert "nowhere" in complaint(config.load, tmp_path / "nowhere" / "a.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not YAML" in complaint(config.load, tmp_path / "a.yaml")


@pytest.mark.parametrize("section, words", [
    ({"top1_hti": 1}, ["unknown reward 'top1_hti'", "did you mean 'top1_hit'?"]),
    ({"__init__": 1}, ["unknown reward '__init__'"]),
    ({"top1_hit": {"grade": True}}, ["reward.top1_hit has no option 'grade'", "did you mean 'graded'?"]),
    ({"top1_hit": {"wieght": 1}}, ["has no option 'wieght'", "did you mean 'weight'?"]),
    ({"top1_hit": {"graded": 1}}, ["reward.top1_hit.graded must be true or false"]),
    ({"top1_hit": {"weight": "much"}}, ["reward.top1_hit.weight must be a number"]),
    ({"top1_hit": {"weight": -1}}, ["reward.top1_hit.weight must be at least 0"]),
    ({"top1_hit": "much"}, ["reward.top1_hit.weight must be a number"]),
    ({}, ["needs a task part"]),
    ({"format": 0.2}, ["needs a task part"]),
    ({"top1_hit": 0, "format": 0}, ["needs a task part"]),
])
def test_a_mistake_in_the_rewards_names_file_reward_and_option(section, words):
    message = complaint(rewarding.load, section, "my.yaml")
    assert message.startswith("my.yaml: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize("form, allowed", [(0.0, True), (0.99, True), (1.0, False), (1.5, False)])
def test_shaping_must_weigh_less_than_the_task(form, allowed):
    section = {"top1_hit": {"weight": 1.0}, "format": {"weight": form}}
    if allowed:
        assert [(p.name, p.weight, p.task) for p in rewarding.load(section)] == [("top1_hit", 1.0, True),
                                                                                 ("format", form, False)]
    else:
        assert "shaping" in complaint(rewarding.load, section, "my.yaml")


def test_a_resolved_config_reads_back_as_itself(tmp_path):
    text = ("train: {lr: 1e-5}\nrun: {dir: 'naïve 007'}\ndata: {tasks: [rec-game]}\n"
            "reward: {top1_hit: {graded: true}, format: 0.1}\n")
    first = config.load(write(tmp_path, text))
    second = config.load(write(tmp_path, config.as_yaml(first), "resolved.yaml"))
    assert second == first and config.as_yaml(second) == config.as_yaml(first)
    assert yaml.safe_load(config.as_yaml(first)) == config.as_dict(first)
    assert config.differences(config.as_dict(first), config.as_dict(second)) == []


def test_differences_name_every_setting_that_differs_and_no_other():
    one, two = config.Config(), config.Config()
    config.override(two, "--train.lr=0.5")
    config.override(two, "--data.tasks=rec-game")
    config.override(two, "--reward.format.weight=0.1")
    expected = ["data.tasks", "reward.format.weight", "train.lr"]
    assert config.differences(config.as_dict(one), config.as_dict(two)) == expected
    assert config.differences(config.as_dict(two), config.as_dict(one)) == expected


def test_an_emptied_reward_entry_is_a_difference_and_a_scalar_weight_is_none():
    one, two = config.Config(), config.Config()
    two.reward = one.reward | {"format": {}}
    assert config.differences(config.as_dict(one), config.as_dict(two)) == ["reward.format"]
    scalar, full = (config.build({"reward": {"top1_hit": entry}}, "x").reward for entry in (2.0, {"weight": 2.0}))
    assert scalar == full
    settings = config.build({"reward": {"top1_hit": 2.0}}, "x")
    config.override(settings, "--reward.top1_hit.graded=true")
    assert settings.reward["top1_hit"] == {"weight": 2.0, "graded": True}


def test_options_of_a_lesson_go_to_the_lesson_of_that_name():
    settings = config.build({"data": {"lessons": [{"run": "x"}, {"name": "teacher", "run": "a"}]}}, "x")
    config.override(settings, "--data.lessons.teacher.run=b")
    config.override(settings, "--data.lessons.other.k=2")
    assert settings.data.lessons == [{"run": "x"}, {"name": "teacher", "run": "b"}, {"name": "other", "k": 2}]


def test_options_of_a_ranker_go_with_it():
    settings = config.build({"ranker": {"name": "sliding", "window": 8}}, "x")
    config.override(settings, "--ranker.step=2")
    assert settings.ranker == {"name": "sliding", "window": 8, "step": 2}
    config.override(settings, "--ranker.name=elimination")
    assert settings.ranker == {"name": "elimination"}


@pytest.mark.parametrize("value", ["1" + "0" * 400, "7" * 5000])
def test_a_number_beyond_all_bounds_is_one_line(tmp_path, value):
    complaint(config.load, write(tmp_path, f"train:\n  steps: {value}\n"))
    complaint(config.override, config.Config(), f"--train.steps={value}")


OPTIONS = "from dataclasses import dataclass\n\n\n@dataclass\nclass Options:\n    scale: float\n\n\n"


def plug_in(tmp_path, monkeypatch, kind, text):
    """Put a file into the folder of a kind; return its name there."""
    package = plugins.FOLDERS[kind]
    name = f"made_{kind}_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(f"{package}.__path__", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, f"{package}.{name}", None)  # forgotten after the test
    del sys.modules[f"{package}.{name}"]
    plugins.module.cache_clear()
    return name


def test_a_reward_option_without_a_default_must_be_given(tmp_path, monkeypatch):
    name = plug_in(tmp_path, monkeypatch, "reward", OPTIONS + "TASK = True\n\n\ndef reward(groups, options):\n"
                   "    return [[options.scale] for _ in groups]\n")
    assert "needs its option 'scale'" in complaint(rewarding.load, {name: {}})
    assert rewarding.load({name: {"scale": "3"}})[0].plugin.reward([None]) == [[3.0]]


LESSON, DRAW = "def lesson(source, fit, options): pass\n", "def draw(source, sample, judge, state, options): pass\n"


@pytest.mark.parametrize("kind, text, words", [
    ("lesson", OPTIONS, "every lesson needs lesson(source, fit, options)"),
    ("lesson", OPTIONS + "lesson = 3\n", "lesson must be a function lesson(source, fit, options)"),
    ("lesson", OPTIONS + LESSON.replace("fit, ", ""),
     "lesson(source, fit, options) is what every lesson needs, not lesson(source, options)"),
    ("lesson", LESSON, "every lesson needs a dataclass Options"),
    ("lesson", "class Options: pass\n" + LESSON, "every lesson needs a dataclass Options"),
    ("draw", OPTIONS + DRAW + "EPISODES = False\n", "every draw needs GIVES, one of candidates, samples, texts"),
    ("draw", OPTIONS + DRAW + "GIVES = 'texts'\n", "every draw needs EPISODES, one of False, True"),
    ("draw", OPTIONS + DRAW + "GIVES, EPISODES = 'words', False\n", "GIVES must be one of candidates, samples, texts"),
    ("draw", OPTIONS + DRAW + "GIVES, EPISODES = 'texts', False\ndef source(source): pass\n",
     "source(source, ranker, seed, options) is what every draw needs, not source(source)"),
    ("objective", OPTIONS + "UNIT, WHOLE_GROUPS, LEAST = 'token', False, 1\n" + "".join(
        f"def {name}: pass\n" for name in ("alive(groups, options)", "passes(options)", "targets(groups, options)",
                                           "loss(batch, options)")), "every objective needs LEARNS_FROM"),
    ("reward", OPTIONS + "def reward(groups, options): pass\n", "every reward needs TASK, one of False, True"),
    ("decision", "def parse(inside, ask): pass\n", "every decision needs right(ask)"),
    ("ranker", OPTIONS + "def rank(query, rng, options): pass\ndef calls(n): pass\n",
     "calls(n, options) is what every ranker needs, not calls(n)"),
    ("lora", OPTIONS + "def make(model, options): pass\n", "make(causal_lm, options) is what every lora needs"),
], ids=lambda value: None if "\n" in value else value)
def test_a_plug_in_that_lacks_a_piece_of_its_contract_is_refused_in_one_line(tmp_path, monkeypatch, kind, text, words):
    name = plug_in(tmp_path, monkeypatch, kind, text)
    message = complaint(plugins.module, kind, name)
    file = f"{plugins.FOLDERS[kind].replace('.', '/')}/{name}.py"
    assert message.startswith(f"{file}: ") and words in message and "\n" not in message


def test_the_repository_has_configs():
    assert (ROOT / "configs" / "iranker.yaml").is_file()


@pytest.mark.parametrize("section", [f.name for f in dataclasses.fields(config.Config) if f.name != "reward"])
def test_every_default_passes_its_own_check(section):
    defaults = dataclasses.asdict(config.Config())[section]
    assert config.as_dict(config.build({section: defaults}, "defaults"))[section] == defaults


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_config_in_the_repository_loads_with_its_rewards(path):
    loaded = config.load(path)
    assert loaded.run.dir == f"runs/{path.stem}" and rewarding.load(loaded.reward, str(path))
    assert path.read_text(encoding="utf-8").startswith("# ")  # says what it is


@pytest.mark.parametrize("left_out", ["rec", "router", "passage"])
def test_transfer_configs_differ_from_the_main_one_in_their_tasks_alone(left_out):
    main, transfer = (config.as_dict(config.load(ROOT / "configs" / f"{name}.yaml"))
                      for name in ("iranker", f"transfer-{left_out}"))
    assert config.differences(main, transfer) == ["data.tasks", "run.dir"]
    assert set(transfer["data"]["tasks"]) == {task for task in world.TASKS if not task.startswith(left_out)}
