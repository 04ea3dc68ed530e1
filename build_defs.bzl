"""Compiler flags by file suffix: the one place both builds (Bazel and setup.py) take them from.

setup.py executes this file as Python, so it holds only assignments and functions of the common subset.
"""

# Same numbers on every machine: no -march=native, and no contraction the source does not spell out.
GENRECALL_COPTS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
]

_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = _AVX2 + ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]

GENRECALL_ISA_COPTS = {
    "_sse42.cc": ["-msse4.2"],
    "_avx2.cc": _AVX2,
    "_avxvnni.cc": _AVX2 + ["-mavxvnni"],
    "_avx512.cc": _AVX512,
    "_avx512bf16.cc": _AVX512 + ["-mavx512bf16"],
    "_vnni.cc": _AVX512 + ["-mavx512vnni"],
    "_amx.cc": _AVX512 + ["-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
}

def isa_copts(filename):
    """The extra flags of one source file, by its suffix."""
    for suffix in GENRECALL_ISA_COPTS:
        if filename.endswith(suffix):
            return GENRECALL_ISA_COPTS[suffix]
    return []
