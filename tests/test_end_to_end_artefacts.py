"""Runs killed at the worst moment, folders shared or read-only: a later stage finds the old, whole
artefact or none, and says what is wrong in one line.
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from server_process import environment

from genrecall import cli, kernels
from genrecall.graphs.export import export, next_version
from genrecall.graphs.loaded import LoadedModel
from genrecall.training.semantic_ids.sid_table import SemanticIds

# Runs `genrecall ARGS`, and dies by kill -9 when it renames or replaces for the nth time.
DIE = """
import os, signal, sys
left = int(sys.argv[1])
def dying(real):
    def rename(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return rename
os.rename, os.replace = dying(os.rename), dying(os.replace)
from genrecall import cli
sys.exit(cli.main(sys.argv[2:]))
"""


def start(code, *args, **options):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(
        command, env=environment(TF_CPP_MIN_LOG_LEVEL="3"), stderr=subprocess.PIPE, **options
    )


def killed_at_rename(number, *args):
    """Whether `genrecall ARGS` came to its rename of that number, and was killed there."""
    process = start(DIE, number, *args, stdout=subprocess.DEVNULL)
    error = process.communicate(timeout=120)[1]
    assert process.returncode in (0, -signal.SIGKILL), error.decode()
    return process.returncode != 0


def refused(capsys, *args):
    """The one line with which `genrecall ARGS` says what is wrong."""
    capsys.readouterr()
    assert cli.main([str(a) for a in args]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"genrecall {args[0]}: "), lines
    return lines[0]


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A data folder, and its semantic IDs in RUN."""
    folder = tmp_path_factory.mktemp("a shop \u00e9")
    assert cli.main(["synth", "--output", f"{folder}/data", "--users", "40", "--items", "60"]) == 0
    assert cli.main(tokenize(folder)) == 0
    return folder


def tokenize(folder, *more):
    return ["tokenize", "--data", f"{folder}/data", "--output", f"{folder}/run", *more]


def test_tokenize_killed_between_its_files_leaves_no_mixture(shop, capsys):
    before = files_of(shop / "run")
    made = [f"semantic_ids/{name}" for name in ("codebooks", "semantic_ids", "vectorizer")]
    assert set(before) == {
        *(f"{name}.npz" for name in made),
        *(f"semantic_ids/report.{kind}" for kind in ("html", "json", "txt")),
        "tokenize.config.json",
        "tokenize.metrics.json",
    }
    other = tokenize(shop, "--seed", "5")
    assert killed_at_rename(4, *other)  # new codebooks beside the old table
    after = {name: data for name, data in files_of(shop / "run").items() if ".tmp" not in name}
    assert {name for name in before if after.get(name) != before[name]} == {
        "semantic_ids/codebooks.npz",
        "semantic_ids/vectorizer.npz",
        "tokenize.config.json",
        "tokenize.metrics.json",  # of a run that has not ended there is none
    }
    SemanticIds.load(shop / "run/semantic_ids/semantic_ids.npz")
    line = refused(capsys, "sft", "--data", shop / "data", "--run", shop / "run")
    assert "codebooks.npz: not the codebooks of semantic_ids.npz beside it" in line
    assert cli.main(other) == 0
    assert killed_at_rename(3, *tokenize(shop))  # a new vectorizer beside the old codebooks
    line = refused(capsys, *tokenize(shop, "--extend", shop / "run"))
    assert "vectorizer.npz: not the vectorizer of codebooks.npz beside it" in line
    assert cli.main(tokenize(shop)) == 0


SAVE_FOLDER = """
from genrecall.training import files
with files.replacing_folder(sys.argv[2]) as new:
    for name in "ab":
        with open(f"{new}/{name}", "w") as f:
            f.write("new")
"""


def test_a_folder_killed_while_it_is_replaced_is_old_or_new_or_away(tmp_path):
    """How a checkpoint is saved. A folder cannot be replaced in one step: it may be away."""
    folder = tmp_path / "checkpoint"
    found = []
    for number in range(1, 4):
        folder.mkdir(exist_ok=True)
        for name in "ab":
            (folder / name).write_text("old")
        process = start(DIE.rpartition("from genrecall")[0] + SAVE_FOLDER, number, folder)
        process.communicate(timeout=60)
        found.append((process.returncode, {p.read_text() for p in folder.glob("*")}))
    killed = -signal.SIGKILL
    assert found == [(killed, {"old"}), (killed, set()), (0, {"new"})]


def test_an_index_killed_while_it_is_saved_leaves_the_old_one(tiny, tmp_path):
    path = tmp_path / "index.gguf"
    old = kernels.RecallIndex.build([2, 2], [1, 2], [[0, 0], [1, 1]])
    old.save(str(path))
    save = (
        "import sys, numpy as np; from genrecall import kernels; n = 3_000_000\n"
        "codes = np.stack([np.arange(n) // 60000, np.arange(n) % 60000], 1)\n"
        "index = kernels.RecallIndex.build([60000, 60000], np.arange(n), codes)\n"
        "print('go', flush=True); index.save(sys.argv[1])"
    )
    process = start(save, path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    while process.poll() is None and len(list(tmp_path.iterdir())) == 1:
        pass
    process.kill()
    process.communicate()
    assert kernels.RecallIndex.load(str(path)).num_items in (2, 3_000_000)
    names = [p.name for p in tmp_path.iterdir() if p != path]
    assert not [n for n in names if n.endswith(".gguf") and not n.startswith(".")], names


EXPORT = """
import os, signal, sys
from genrecall.graphs.export import export
def report(line):
    if line.startswith("check"):
        os.kill(os.getpid(), signal.SIGKILL)
export(*sys.argv[1:], dtype="float32", engine={"num_threads": 1}, report=report)
"""


def test_an_export_killed_when_all_is_written_leaves_no_version(tiny, tmp_path):
    process = start(EXPORT, tiny.checkpoint, tiny.index, tmp_path / "models")
    error = process.communicate(timeout=120)[1]
    assert process.returncode == -signal.SIGKILL, error.decode()
    left = list((tmp_path / "models").iterdir())
    assert left and all(p.name.startswith(".") for p in left)
    assert next_version(tmp_path / "models") == 1


def test_of_two_exports_at_once_one_is_told(tiny, tmp_path):
    def quick(report):
        options = {"dtype": "float32", "engine": {"num_threads": 1}, "warmup": 1}
        return export(tiny.checkpoint, tiny.index, tmp_path, report=report, **options)

    def second(line):
        if line.startswith("check"):
            quick(lambda line: None)

    with pytest.raises(FileExistsError, match="1: another export came first with this version"):
        quick(second)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    with LoadedModel(tmp_path / "1") as model:
        assert model({"user_id": [1]})["num_items"][0] > 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(shop, tmp_path, capsys):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    line = refused(capsys, "tokenize", "--data", shop / "data", "--output", closed / "run")
    assert "Permission denied" in line and str(closed) in line


@pytest.fixture(scope="module")
def export_flags(tiny, tmp_path_factory):
    return ["export", "--checkpoint", tiny.checkpoint, "--index", tiny.index, "--output"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--num_items", 0], "num_items = 0: expected 1..1048576"),
        (["--num_items", 2**31], "num_items = 2147483648: expected 1..1048576"),
        (["--deadline_ms", 2**31], "deadline_ms = 2147483648: expected < 2^31"),
        (["--threads", -1], "num_threads' of -1 must be at least minimum 0"),
        (["--threads", 100000], "num_threads = 100000: expected 0..1024"),
        (["--warmup", -1], "warmup = -1: expected 0..1000"),
        (["--quota", "x=1"], "quota of branch 'x': expected one of generative, popular"),
        (["--version", 0], "version = 0: expected >= 1"),
    ],
)
def test_export_refuses_its_flags_in_one_line(capsys, export_flags, tmp_path, flags, expected):
    assert expected in refused(capsys, *export_flags, tmp_path, *flags)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_damaged_artefacts_are_named_by_export(tiny, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint"
    for name in ("model.safetensors", "prompt.gguf", "sid_space.json", "config.json"):
        for cut in (0.5, 0):
            shutil.rmtree(checkpoint, ignore_errors=True)
            shutil.copytree(tiny.checkpoint, checkpoint)
            data = (checkpoint / name).read_bytes()
            (checkpoint / name).write_bytes(data[: int(cut * len(data))])
            flags = ["--checkpoint", checkpoint, "--index", tiny.index]
            line = refused(capsys, "export", *flags, "--output", tmp_path / "models")
            assert name in line
    assert not [p for p in (tmp_path / "models").glob("*") if p.name.isdigit()]
