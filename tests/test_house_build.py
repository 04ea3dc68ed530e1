"""The build as a user meets it: clear messages for what is missing, and a wheel that works from
any folder.
"""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_setup(*args, python=sys.executable, **env):
    """Runs setup.py with extra environment variables; returns (exit status, stderr)."""
    run = subprocess.run(
        [python, "setup.py", *args],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stderr


def test_missing_compiler_is_named(tmp_path):
    status, stderr = run_setup("build_ext", "--build-lib", str(tmp_path), CXX="no-such-compiler")
    assert status != 0
    assert "genrecall: C++ compiler 'no-such-compiler' not found: install g++ >= 11" in stderr


def test_missing_tensorflow_is_named(tmp_path):
    """A Python that has setuptools and pybind11 but no TensorFlow, as a new user's."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    site = tmp_path / "site"
    site.mkdir()
    for package in ("setuptools", "_distutils_hack", "pybind11"):
        (site / package).symlink_to(Path(importlib.util.find_spec(package).origin).parent)
    status, stderr = run_setup(
        "build_ext",
        "--build-lib",
        str(tmp_path / "lib"),
        python=str(tmp_path / "bare" / "bin" / "python"),
        PYTHONPATH=str(site),
        GENRECALL_BUILD_ONLY="_genrecall_ops",
    )
    assert status != 0
    assert "genrecall: TensorFlow is needed to compile the op library" in stderr
    assert "pip install 'tensorflow==2.21.*'" in stderr


def test_wheel_works_from_any_folder(tmp_path):
    """The wheel holds the three compiled objects, and is imported from its own files, away from
    the checkout.
    """
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-build-isolation",
            "--no-deps",
            "-w",
            tmp_path,
            ".",
        ],
        cwd=ROOT,
        check=True,
    )
    (wheel,) = tmp_path.glob("genrecall-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    for stem in (
        "genrecall/kernels/_kernels.",
        "genrecall/trtllm_bridge/_engine.",
        "genrecall/tf_ops/_genrecall_ops.so",
    ):
        assert [n for n in names if n.startswith(stem)], f"{stem} is not in the wheel"
    assert not [n for n in names if "/tests/" in n or n.endswith((".cc", ".o"))]
    # The wheel's own folder goes before an editable install of the checkout.
    script = (
        "import numpy as np, genrecall.tf_ops as ops; from genrecall import kernels;"
        "index = kernels.RecallIndex.build([2, 2], np.array([7]), np.array([[1, 0]], np.int32));"
        "print(index.num_items, kernels.__file__, ops.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] == "1"
    assert run.stdout.count(str(tmp_path / "installed")) == 2, run.stdout
