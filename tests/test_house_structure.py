"""The house's rules, checked on the source tree: who may depend on whom, file sizes, one sentence
per module.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "trtllm_bridge", "tf_ops", "graphs", "serving", "training")

# Room -> rooms its Python modules may import.
PYTHON_MAY_IMPORT = {
    "kernels": {"kernels"},
    "trtllm_bridge": {"trtllm_bridge", "kernels"},
    "tf_ops": {"tf_ops", "trtllm_bridge", "kernels"},
    "graphs": {"graphs", "tf_ops", "trtllm_bridge", "kernels"},
    "serving": {"serving", "graphs", "tf_ops", "trtllm_bridge", "kernels"},
    "training": {"training", "trtllm_bridge", "kernels"},
}
# Room -> rooms its C++ files may include.
CC_MAY_INCLUDE = {
    "kernels": {"kernels"},
    "trtllm_bridge": {"trtllm_bridge", "kernels"},
    "tf_ops": {"tf_ops", "trtllm_bridge", "kernels"},
}


# The rooms inside training/, in the order of dependency: each imports itself and those before it.
TRAINING_ORDER = ("dataset", "semantic_ids", "prompting", "evaluation", "tuning")


def python_files(room):
    return sorted((ROOT / room).rglob("*.py"))


def imported_modules(path):
    """Full names of everything a Python file imports, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path.name}: relative import; write `from genrecall.room import x`"
            )
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def genrecall_rooms(path):
    names = (name.split(".") for name in imported_modules(path))
    return {parts[1] for parts in names if parts[0] == "genrecall" and len(parts) > 1} & set(ROOMS)


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^">]+)[">]', path.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("room", ROOMS)
def test_python_dependencies_go_one_way(room):
    wrong = {
        p.name: sorted(genrecall_rooms(p) - PYTHON_MAY_IMPORT[room])
        for p in python_files(room)
        if genrecall_rooms(p) - PYTHON_MAY_IMPORT[room]
    }
    assert not wrong, f"{room}/ may import {sorted(PYTHON_MAY_IMPORT[room])} only: {wrong}"


@pytest.mark.parametrize("place", range(len(TRAINING_ORDER)))
def test_training_dependencies_go_one_way(place):
    later = set(TRAINING_ORDER[place + 1 :])
    for path in python_files(f"training/{TRAINING_ORDER[place]}"):
        parts = [name.split(".") for name in imported_modules(path)]
        used = {p[2] for p in parts if p[:2] == ["genrecall", "training"] and len(p) > 2}
        assert not used & later, f"{path.relative_to(ROOT)} imports {sorted(used & later)}"


def test_every_training_room_has_its_place_and_is_installed():
    rooms = {p.parent.name for p in (ROOT / "training").glob("*/__init__.py")}
    assert rooms == set(TRAINING_ORDER)
    installed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    missing = [r for r in rooms if f'"genrecall.training.{r}"' not in installed]
    assert not missing, f"pyproject.toml does not install {missing}"


@pytest.mark.parametrize("room", ["kernels", "trtllm_bridge", "training"])
def test_rooms_without_tensorflow(room):
    wrong = [
        p.name
        for p in python_files(room)
        if any(name.split(".")[0].startswith("tensorflow") for name in imported_modules(p))
    ]
    assert not wrong, f"{room}/ must not import TensorFlow: {wrong}"


@pytest.mark.parametrize("room", ["kernels", "trtllm_bridge", "tf_ops", "graphs", "serving"])
def test_serving_side_needs_no_pytorch(room):
    heavy = {"torch", "transformers", "faiss", "sklearn"}
    wrong = [
        p.name for p in python_files(room) if heavy & {n.split(".")[0] for n in imported_modules(p)}
    ]
    assert not wrong, f"{room}/ must not import {sorted(heavy)}: {wrong}"


@pytest.mark.parametrize("room", sorted(CC_MAY_INCLUDE))
def test_cc_includes_go_one_way(room):
    for path in sorted((ROOT / room).glob("*.cc")) + sorted((ROOT / room).glob("*.h")):
        own = {i.split("/")[0] for i in includes(path)} & set(ROOMS)
        is_op = path.name.endswith(
            ("_op.cc", "_ops.cc")
        )  # the bridge op is a TensorFlow door wherever it lies
        assert own <= CC_MAY_INCLUDE["tf_ops" if is_op else room], (
            f"{path.relative_to(ROOT)} includes {sorted(own)}"
        )


def is_door(path):
    """Whether a C++ file of kernels/ or trtllm_bridge/ is a door to Python or TensorFlow."""
    return path.name.startswith("bindings") or path.name.endswith(("_op.cc", "_ops.cc"))


@pytest.mark.parametrize("room", ["kernels", "trtllm_bridge"])
def test_core_includes_neither_tensorflow_nor_python(room):
    for path in sorted((ROOT / room).glob("*.cc")) + sorted((ROOT / room).glob("*.h")):
        if is_door(path):
            continue
        foreign = [
            i for i in includes(path) if re.match(r"(tensorflow|absl|tsl|xla|pybind11|Python)", i)
        ]
        assert not foreign, f"{path.relative_to(ROOT)} includes {foreign}"


@pytest.mark.parametrize("room", ["kernels", "trtllm_bridge"])
def test_core_objects_need_neither_tensorflow_nor_python(room):
    built = ROOT / "build" / "obj" / "core" / room
    sources = [
        p
        for p in sorted((ROOT / room).glob("*.cc"))
        if not is_door(p) and not p.name.endswith("_test.cc")
    ]
    objects = [built / (p.name + ".o") for p in sources]
    missing = [o.name for o in objects if not o.exists()]
    assert sources and not missing, f"build the project first (pip install -e .): no {missing}"
    for obj in objects:
        wanted = subprocess.run(
            ["nm", "-C", "--undefined-only", str(obj)], capture_output=True, text=True, check=True
        ).stdout
        foreign = [
            s
            for s in wanted.splitlines()
            if re.search(r"\b(Py[A-Z_]|_Py|TF_|tensorflow::|absl::)", s)
        ]
        assert not foreign, f"{obj.name} needs {foreign[:3]}"


def test_isa_files_include_only_intrinsics_and_our_own_headers():
    """An inlined AVX-512 copy of a shared function may win at link time and crash an older CPU."""
    allowed = {"immintrin.h", "cstdint", "cstddef", "stdint.h", "stddef.h"}
    build = {}
    exec((ROOT / "build_defs.bzl").read_text(), build)
    isa_suffixes = build["GENRECALL_ISA_COPTS"]
    for path in (ROOT / "kernels").glob("*.cc"):
        if path.name.endswith(tuple(isa_suffixes)):
            foreign = [
                i for i in includes(path) if i not in allowed and not i.startswith("kernels/")
            ]
            assert not foreign, f"{path.name} includes {foreign}"


def tracked_sources():
    for folder in (*ROOMS, "tests", "benchmarks", "emulator", "examples", "."):
        for pattern in ("*.py", "*.cc", "*.h"):
            everywhere = folder == "training"
            yield from sorted((ROOT / folder).glob(f"**/{pattern}" if everywhere else pattern))


def test_files_stay_small():
    long = {
        str(p.relative_to(ROOT)): n
        for p in tracked_sources()
        if (n := len(p.read_text().splitlines())) > 450
    }
    assert not long, f"files of over 450 lines want to be two: {long}"


def test_structure_page_names_every_module():
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    modules = {
        p.relative_to(ROOT).as_posix()
        for r in (*ROOMS, "emulator")
        for p in python_files(r)
        if p.name != "__init__.py"
    }
    modules |= {
        p.relative_to(ROOT).as_posix() for r in CC_MAY_INCLUDE for p in (ROOT / r).glob("*.h")
    }
    missing = sorted(m for m in modules if f"`{m}`" not in page)
    assert not missing, f"docs/structure.md has no sentence for {missing}"
    gone = sorted(m for m in re.findall(r"^\| `([^`]+)`", page, re.M) if not (ROOT / m).exists())
    assert not gone, f"docs/structure.md describes files that are gone: {gone}"
