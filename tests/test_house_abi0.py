"""TF Serving links the op sources into builds of its own: the old string ABI, no headers of pip."""

import pathlib
import re
import shlex
import subprocess

import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPS = sorted([*(ROOT / "tf_ops").glob("*.cc"), *(ROOT / "trtllm_bridge").glob("*_op*.cc")])
CORE = sorted(
    p
    for room in ("kernels", "trtllm_bridge")
    for p in (ROOT / room).glob("*.cc")
    if p not in OPS and not p.name.startswith("bindings") and not p.name.endswith("_test.cc")
)
OPS = [p for p in OPS if not p.name.endswith("_test.cc")]


def build_defs():
    scope = {}
    exec((ROOT / "build_defs.bzl").read_text(), scope)
    return scope


def compile_errors(source, flags=()):
    """What the compiler says of a source with the old ABI; None when it accepts it."""
    defs = build_defs()
    copts = [*defs["GENRECALL_COPTS"], *defs["isa_copts"](source.name), "-O0", "-w", *flags]
    command = ["nice", "g++", *copts, "-D_GLIBCXX_USE_CXX11_ABI=0", "-fsyntax-only"]
    run = subprocess.run(
        [*command, "-iquote", str(ROOT), str(source)], capture_output=True, text=True
    )
    return run.stderr[-2000:] if run.returncode else None


def check(sources, folder, flags=()):
    """Compiles all sources as one, and one by one only to name those that are to blame."""
    one = folder / "one.cc"
    one.write_text("".join(f'#include "{path.relative_to(ROOT)}"\n' for path in sources))
    if compile_errors(one, flags) is None:
        return {}
    return {p.name: e for p in sources if (e := compile_errors(p, flags)) is not None}


def test_op_sources_compile_with_the_old_string_abi(tmp_path):
    flags = [f for f in tf.sysconfig.get_compile_flags() if "ABI" not in f and "-std" not in f]
    assert check(OPS, tmp_path, flags) == {}


def test_core_sources_compile_with_the_old_string_abi(tmp_path):
    isa = build_defs()["GENRECALL_ISA_COPTS"]
    plain = [p for p in CORE if not p.name.endswith(tuple(isa))]
    assert check(plain, tmp_path) == {}
    for suffix in isa:
        assert check([p for p in CORE if p.name.endswith(suffix)], tmp_path, isa[suffix]) == {}


@pytest.mark.parametrize("path", OPS, ids=lambda p: p.name)
def test_op_sources_include_what_a_serving_build_has(path):
    included = re.findall(r'^#include [<"]([^">]+)', path.read_text(), re.M)
    for name in included:
        first = name.split("/")[0]
        known = first in ("tensorflow", "absl", "tf_ops", "kernels", "trtllm_bridge")
        system = "/" not in name or first == "sys"
        assert known or system, f"{path.name} includes {name}"


def test_op_library_needs_only_what_tensorflow_exports():
    """A server that is no Python process can open it."""
    from genrecall.tf_ops import library

    text = subprocess.run(
        ["nm", "-D", "--undefined-only", library.path()], capture_output=True, text=True, check=True
    ).stdout
    symbols = {line.split()[-1].split("@")[0] for line in text.splitlines()}
    assert not {s for s in symbols if s.startswith(("Py", "_Py"))}
    needed = subprocess.run(
        shlex.split("readelf -d") + [library.path()], capture_output=True, text=True, check=True
    ).stdout
    libraries = set(re.findall(r"NEEDED.*\[(.*?)\]", needed))
    assert all("python" not in lib and "pywrap" not in lib for lib in libraries), libraries
