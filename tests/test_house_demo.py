"""The demo as a user runs it: real processes, an outcome better than popularity."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_demo_trains_serves_and_beats_popularity(tmp_path):
    output = tmp_path / "demo"
    run = subprocess.run(
        [sys.executable, "-m", "genrecall.cli", "demo", "--output", str(output), "--minutes", "2"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert run.stdout.count("\nnext") == 3  # what each of the three users took next
    assert "latency over gRPC, one client, beam 50: p50 " in run.stdout
    evaluation = json.loads((output / "run" / "evaluation_valid.json").read_text())
    methods = evaluation["methods"]
    assert methods["genrecall"]["hr@10"] > 2 * methods["popularity"]["hr@10"]


def test_demo_does_not_delete_a_folder_it_did_not_write(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    run = subprocess.run(
        [sys.executable, "-m", "genrecall.cli", "demo", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert f"--output {tmp_path}: holds files that no demo wrote; name another folder" in run.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"
