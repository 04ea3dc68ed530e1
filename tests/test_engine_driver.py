"""The engine driven from C++: what a step asks of the heap, and a short soak (see `make soak`)."""

import subprocess

import engine_driver
import pytest

pytestmark = pytest.mark.skipif(
    not (engine_driver.ROOT / "build/obj/core/trtllm_bridge/cpu_engine.cc.o").exists(),
    reason="needs the objects of a build in the checkout: pip install -e .",
)


def test_a_step_allocates_nothing(tmp_path):
    """The same request in few steps and in many: the steps between add no allocation."""
    program = tmp_path / "step_allocations"
    engine_driver.build("step_allocations.cc", program)
    run = subprocess.run(
        [program, tmp_path / "model.gguf"], capture_output=True, text=True, check=True
    )
    rows = [[int(x) for x in line.split()] for line in run.stdout.splitlines()]
    steps = [r[1] for r in rows]
    assert steps == sorted(steps) and steps[-1] > 20 * steps[0], rows
    assert max(r[2] for r in rows) == min(r[2] for r in rows), rows


def test_a_short_soak(capfd):
    run = engine_driver.soak(seconds=4)
    out, err = capfd.readouterr()
    assert run.returncode == 0, out + err
    assert out.endswith("ok\n")


def test_a_program_that_fails_says_so(tmp_path):
    program = tmp_path / "soak_engine"
    engine_driver.build("soak_engine.cc", program)
    run = subprocess.run([program, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "usage: soak_engine" in run.stderr
