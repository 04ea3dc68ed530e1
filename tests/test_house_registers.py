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
ON_STACK = re.compile(r"[xyz]mm\d+.*\(%r[sb]p\b|\(%r[sb]p\b.*[xyz]mm")
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


def straight_loops(function):
    """The instructions of each loop without another jump in it: what a tile's steps are."""
    index = {address: i for i, (address, _) in enumerate(function)}
    for last, (_, instruction) in enumerate(function):
        match = JUMP.match(instruction)
        first = index.get(match[1], last + 1) if match else last + 1
        body = [text for _, text in function[first : last + 1]]
        if body and sum(bool(JUMP.match(x)) for x in body) == 1:
            yield body


def test_loops_are_found():
    text = "0 <f>:\n  1:\tnop\n  2:\tnop\n  3:\tjne 2 <f+1>\n  4:\tjne 1 <f>\n  5:\tjmp 9 <f>\n"
    assert [list(straight_loops(f)) for f in functions(text)] == [[], [["nop", "jne 2 <f+1>"]]]


# Of each gemm, the products of its widest tiles' steps: one a sum, two for bf16 that is widened.
WIDEST = {
    "avx2": {12, 24},
    "avx512": {24, 48},
    "avx512bf16": {24},
    "int8_avx2": {12},
    "int8_avxvnni": {12},
    "int8_vnni": {24},
}


@pytest.mark.parametrize("source", WIDEST)
def test_sums_stay_in_registers(source):
    path = OBJECTS / f"gemm_{source}.cc.o"
    if not path.exists() or shutil.which("objdump") is None:
        pytest.skip("needs binutils and the objects of a build in the source tree")
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set()
    for loop in (x for f in functions(out) for x in straight_loops(f)):
        products = sum(bool(PRODUCT.search(x)) for x in loop)
        if products < 8:  # of few rows
            continue
        found.add(products)
        # One: GCC parks an activation that nobody reads again.
        assert sum(bool(ON_STACK.search(x)) for x in loop) <= 1, "\n".join(loop)
    assert WIDEST[source] <= found, "no such tile: are its loops unrolled?"
