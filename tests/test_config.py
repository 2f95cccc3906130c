"""Settings arrive as the type their field has, whatever YAML made of them, and a mistake ends in one line that says
where it stands, what it is called and what was probably meant. Reward weights can't let form outweigh the task."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from ranker import config, rewarding, world
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
    loaded = config.load(write(tmp_path, "train: {steps: 1e3, beta: 1}\nlora: {alpha: 16}\n"))
    assert loaded.train.steps == 1000 and type(loaded.train.steps) is int
    assert type(loaded.train.beta) is float and type(loaded.lora.alpha) is float


def test_an_empty_file_gives_the_defaults_and_a_folder_named_after_it(tmp_path):
    loaded = config.load(write(tmp_path, "", "first_try.yaml"))
    assert loaded.run.dir == "runs/first_try"
    assert dataclasses.replace(loaded, run=config.Run()) == config.Config()


def test_two_configs_share_no_mutable_default():
    one, two = config.Config(), config.Config()
    one.data.tasks.append("rec-movie"), one.reward.update(format=0.1)
    assert two.data.tasks == [] and "format" not in two.reward


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
    ("--reward.format=0.1", lambda c: c.reward["format"], {"weight": 0.1}),
    ("--reward.format.weight=0.1", lambda c: c.reward["format"], {"weight": 0.1}),
    ("--reward.top1_hit.graded=true", lambda c: c.reward["top1_hit"], {"weight": 1.0, "graded": True}),
])
def test_the_command_line_has_the_last_word(tmp_path, text, read, value):
    file = "train: {lr: 3, steps: 5}\ndata: {test: a.jsonl, tasks: [rec-game]}\nreward: {top1_hit: {weight: 1.0}}\n"
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
    ("train: {clip_low: 1.5}", ["train.clip_low must be between 0.0 and 1.0"]),
    ("rollout: {temperature: 0}", ["rollout.temperature must be between 0.01 and 10.0"]),
    ("rollout: {completions_per_prompt: 1}", ["rollout.completions_per_prompt must be at least 2"]),
    ("model: {name: 7}", ["model.name must be text", "7", "quote"]),
    ("model: {quantize: no}", ["model.quantize must be text", "False"]),
    ("model: {gradient_checkpointing: 1}", ["model.gradient_checkpointing must be true or false"]),
    ("model: {quantize: nf5}", ["model.quantize must be one of none, nf4", "did you mean 'nf4'?"]),
    ("train: {schedule: cosin}", ["train.schedule must be one of", "did you mean 'cosine'?"]),
    ("data: {tasks: [1, 2]}", ["data.tasks must be a list of names"]),
    ("ranker: {name: 7}", ["ranker.name '7'"]),
    ("ranker: {name: eliminaton}", ["ranker.name 'eliminaton'", "did you mean 'elimination'?"]),
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


def test_a_reward_option_without_a_default_must_be_given(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text("TASK = True\ndef reward(groups, scale: float):\n"
                                      "    return [[scale] for _ in groups]\n")
    monkeypatch.setattr(rewarding, "FOLDER", tmp_path)
    monkeypatch.setattr("rewards.__path__", [str(tmp_path)])
    assert "needs its option 'scale'" in complaint(rewarding.load, {"half": {}})
    assert rewarding.load({"half": {"scale": "3"}})[0].function([None]) == [[3.0]]


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
