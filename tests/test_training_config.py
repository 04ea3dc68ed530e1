"""Options classes: presets, files and flags, and what is refused; the manifests of runs."""

import argparse
import dataclasses
import json
from dataclasses import dataclass

import pytest

from genrecall.training import config, manifest
from genrecall.training.config import nested, option


@dataclass(frozen=True)
class Loop:
    epochs: int = option(40, "passes", low=1)
    rate: float = option(2e-3, "learning rate, 100 % at the peak", above=0)
    dropout: float = option(0.2, "rate", low=0, below=1)
    minutes: float | None = option(None, "budget", above=0)

    def __post_init__(self):
        config.check(self)


@dataclass(frozen=True)
class Options:
    softmax: str = option("level", "what codes compete with", choices=("level", "vocab"))
    history: bool = option(True, "history loss")
    folder: str | None = option(None, "start from")
    tasks: dict[str, float] = option({}, "weights", low=0)
    sizes: tuple[int, ...] = option((4, 8), "sizes", low=1, high=512)
    loop: Loop = nested(Loop)

    def __post_init__(self):
        config.check(self)
        if self.folder and self.softmax == "vocab":
            raise ValueError("folder and softmax vocab exclude each other")


PRESETS = {"quick": {"loop": {"epochs": 2, "rate": 1}}, "wide": {"sizes": [64]}}


def parse(*argv):
    parser = argparse.ArgumentParser()
    config.add_arguments(parser, Options, PRESETS)
    return config.from_args(Options, parser.parse_args(argv), PRESETS)


def test_defaults_without_anything():
    assert parse() == Options() == config.load(Options)
    assert Options().tasks is not Options().tasks


def test_flags_of_every_type():
    made = parse(
        *"--softmax vocab --no_history --tasks a=0.5 b=2 --sizes 3 5 --epochs 7 --minutes 1".split()
    )
    assert made == Options("vocab", False, None, {"a": 0.5, "b": 2.0}, (3, 5), Loop(7, minutes=1.0))
    assert parse("--history").history and parse("--minutes", "none").loop.minutes is None


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_flags_override_the_file_and_the_file_its_preset(tmp_path, suffix):
    path = tmp_path / f"o.{suffix}"
    if suffix == "json":
        path.write_text('{"preset": "quick", "tasks": {"x": 1}, "loop": {"dropout": 0}}')
    else:
        path.write_text('preset = "quick"\n[tasks]\nx = 1\n[loop]\ndropout = 0\n')
    made = parse("--config", str(path), "--epochs", "9")
    assert made == Options(tasks={"x": 1.0}, loop=Loop(9, 1.0, 0.0))
    assert isinstance(made.loop.rate, float)
    assert parse("--config", str(path), "--preset", "wide").loop.epochs == 40


def test_load_merges_preset_file_and_overrides(tmp_path):
    path = tmp_path / "o.json"
    path.write_text('{"loop": {"rate": 3}}')
    made = config.load(Options, PRESETS["quick"], str(path), {"loop": {"dropout": 0.5}})
    assert made.loop == Loop(2, 3.0, 0.5)


def test_options_survive_json():
    made = parse("--tasks", "a=1", "--sizes", "1", "--minutes", "2")
    assert config.load(Options, json.loads(json.dumps(config.as_dict(made)))) == made


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"epochs": 3}', "epochs = 3: unknown key; expected one of softmax, history, folder"),
        ('{"loop": {"epoch": 3}}', "loop.epoch = 3: unknown key; expected one of epochs, rate"),
        ('{"loop": 3}', "loop = 3: expected an object"),
        ('{"loop": {"epochs": 3.0}}', r"loop.epochs = 3.0: expected an integer"),
        ('{"loop": {"epochs": true}}', "loop.epochs = True: expected an integer"),
        ('{"loop": {"epochs": 0}}', "loop.epochs = 0: expected >= 1"),
        ('{"loop": {"rate": 0}}', "loop.rate = 0: expected > 0"),
        ('{"loop": {"rate": NaN}}', "loop.rate = nan: expected > 0"),
        ('{"loop": {"rate": "1"}}', "loop.rate = '1': expected a number"),
        ('{"loop": {"dropout": 1}}', "loop.dropout = 1: expected 0 <= dropout < 1"),
        ('{"loop": {"epochs": null}}', "loop.epochs = None: expected an integer"),
        ('{"history": 1}', "history = 1: expected true or false"),
        ('{"folder": 1}', "folder = 1: expected a string"),
        ('{"softmax": "all"}', r"softmax = 'all': expected level\|vocab"),
        ('{"sizes": [4, 513]}', r"sizes\[1\] = 513: expected 1..512"),
        ('{"sizes": 4}', "sizes = 4: expected a list"),
        ('{"tasks": {"a": -1}}', r"tasks\['a'\] = -1: expected >= 0"),
        ('{"tasks": [1]}', r"tasks = \[1\]: expected an object"),
        ('{"preset": "slow"}', "preset = 'slow': expected one of quick, wide"),
        ('{"folder": "x", "softmax": "vocab"}', "folder and softmax vocab exclude each other"),
        ("[1]", "expected an object, got list"),
        ("{", "not JSON: "),
    ],
)
def test_a_file_is_refused_by_name_key_value_and_expectation(tmp_path, content, message):
    path = tmp_path / "o.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        parse("--config", str(path))


def test_a_broken_toml_file_and_a_missing_one_are_named(tmp_path):
    path = tmp_path / "o.toml"
    path.write_text("a = ")
    with pytest.raises(ValueError, match=f"{path}: not TOML: "):
        config.load(Options, path=str(path))
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        config.load(Options, path=str(tmp_path / "nowhere.json"))


def test_flags_and_presets_are_refused_by_name(capsys):
    with pytest.raises(ValueError, match="command line: loop.epochs = 0: expected >= 1"):
        parse("--epochs", "0")
    with pytest.raises(ValueError, match="preset: loop.epochs = 0.5: expected an integer"):
        config.load(Options, {"loop": {"epochs": 0.5}})
    for argv, message in [
        (["--epochs", "x"], "invalid int value: 'x'"),
        (["--tasks", "a"], "'a': expected KEY=VALUE"),
        (["--preset", "slow"], "invalid choice: 'slow'"),
        (["--epoch_s", "1"], "unrecognized arguments: --epoch_s"),
    ]:
        with pytest.raises(SystemExit):
            parse(*argv)
        assert message in capsys.readouterr().err


def test_a_class_checks_itself_when_built_directly():
    with pytest.raises(ValueError, match="^epochs = 0: expected >= 1"):
        Loop(epochs=0)
    with pytest.raises(ValueError, match=r"^sizes\[0\] = 0: expected 1..512"):
        dataclasses.replace(Options(), sizes=(0,))
    with pytest.raises(TypeError, match="no bound 'min'"):
        option(1, "x", min=0)


def test_help_shows_defaults_and_choices(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--softmax level|vocab" in text and "(default 4 8)" in text
    assert "100 % at the peak (default 0.002)" in text


# --- manifests ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    path: str
    digest: str


def test_a_manifest_says_what_was_run_and_can_be_run_again(tmp_path):
    run = str(tmp_path / "run")
    made = parse("--epochs", "3", "--tasks", "a=1")
    manifest.write(run, "sft", made, data=Data("d", "abc"), seed=5, extra={"parameters": 7})
    written = json.loads((tmp_path / "run" / "sft.config.json").read_text())
    assert written["data"] == {"path": "d", "digest": "abc"}
    assert (written["verb"], written["seed"], written["parameters"]) == ("sft", 5, 7)
    assert {"python", "torch", "numpy"} <= set(written["packages"])
    assert written["machine"]["cores"] >= 1 and written["machine"]["cpu"]
    assert parse("--config", f"{run}/sft.config.json") == made


def test_metrics_stand_beside_the_configuration_they_belong_to(tmp_path):
    with pytest.raises(FileNotFoundError, match="sft.config.json"):
        manifest.finish(str(tmp_path), "sft", {})
    manifest.write(str(tmp_path), "sft", {"a": 1})
    manifest.finish(str(tmp_path), "sft", {"hr@10": 0.5})
    written = json.loads((tmp_path / "sft.metrics.json").read_text())
    assert written["metrics"] == {"hr@10": 0.5} and 0 <= written["seconds"] < 60
    manifest.write(str(tmp_path), "sft", {"a": 2})
    assert not (tmp_path / "sft.metrics.json").exists()
    with pytest.raises(ValueError, match=r"extra\['seed'\]: the manifest has this key itself"):
        manifest.write(str(tmp_path), "sft", {}, extra={"seed": 1})
