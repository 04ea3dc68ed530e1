"""What the compiler made of the gemms' inner loops, of every instruction set, also those not here.

A tile's sums belong in registers. GCC has kept them on the stack for an index that is no constant,
or when it formed all products of a step before adding the first: right answers, at a third of the
speed, on machines that nobody was measuring on.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

OBJECTS = Path(__file__).resolve().parent.parent / "build/obj/core/kernels"
PRODUCT = re.compile(r"vfmadd|vpmaddwd|vpdpbusd|vdpbf16ps")
ON_STACK = re.compile(r"[xyz]mm\d+.*\(%r[sb]p\)|\(%r[sb]p\).*[xyz]mm")
JUMP = re.compile(r"j\w+\s+([0-9a-f]+)\b")


def functions(disassembly):
    """[(address, instruction)] of each function."""
    found = [[]]
    for line in disassembly.splitlines():
        if line.endswith(">:"):
            found.append([])
        elif match := re.match(r"\s+([0-9a-f]+):\s+(.+)", line):
            found[-1].append((match[1], match[2]))
    return found


def innermost_loops(function):
    """The instructions of each loop that has no loop within."""
    index = {address: i for i, (address, _) in enumerate(function)}
    loops = []  # (first, last), by the backward jump at its end
    for i, (_, instruction) in enumerate(function):
        match = JUMP.match(instruction)
        if match and index.get(match[1], i + 1) <= i:
            loops.append((index[match[1]], i))
    for first, last in loops:
        if not any(first <= f and b < last for f, b in loops):
            yield [text for _, text in function[first : last + 1]]


def test_loops_are_found():
    text = "0 <f>:\n  1:\tnop\n  2:\tnop\n  3:\tjne 2 <f+1>\n  4:\tjne 1 <f>\n  5:\tjmp 9 <f>\n"
    assert [list(innermost_loops(f)) for f in functions(text)] == [[], [["nop", "jne 2 <f+1>"]]]


GEMMS = ("avx2", "avx512", "avx512bf16", "int8_avx2", "int8_avxvnni", "int8_vnni")


@pytest.mark.parametrize("source", GEMMS)
def test_sums_stay_in_registers(source):
    path = OBJECTS / f"gemm_{source}.cc.o"
    if not path.exists() or shutil.which("objdump") is None:
        pytest.skip("needs binutils and the objects of a build in the source tree")
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tiles = 0
    for function in functions(out):
        for loop in innermost_loops(function):
            products = sum(bool(PRODUCT.search(x)) for x in loop)
            if products < 8 or len(loop) > 5 * products:  # no tile, or its end
                continue
            tiles += 1
            on_stack = [x for x in loop if ON_STACK.search(x)]
            assert len(on_stack) <= products // 12, "\n".join(loop)
    assert tiles >= 3, "no tiles found: has the disassembly another form?"
