"""Macros that turn the suffix rules of build_defs.bzl into targets."""

load("//:build_defs.bzl", "GENRECALL_COPTS", "GENRECALL_ISA_COPTS", "isa_copts")

def genrecall_cc_library(name, exclude, deps = [], **kwargs):
    """One library of all .cc files of a package but `exclude`; each ISA's files get its flags.

    Args:
      name: of the library.
      exclude: glob patterns of files that belong to other targets.
      deps: of every file.
      **kwargs: for the outer cc_library.
    """
    headers = name + "_headers"
    native.cc_library(name = headers, hdrs = native.glob(["*.h"]), deps = deps)
    isa_patterns = ["*" + suffix for suffix in GENRECALL_ISA_COPTS]
    parts = []
    for source in native.glob(isa_patterns, exclude = exclude):
        part = source[:-len(".cc")]
        native.cc_library(
            name = part,
            srcs = [source],
            copts = GENRECALL_COPTS + isa_copts(source),
            linkstatic = 1,
            deps = [headers],
        )
        parts.append(part)
    native.cc_library(
        name = name,
        srcs = native.glob(["*.cc"], exclude = exclude + isa_patterns),
        hdrs = native.glob(["*.h"]),
        copts = GENRECALL_COPTS,
        linkopts = ["-pthread"],
        # Symbols are hidden, so the pieces cannot be shared objects of their own.
        linkstatic = 1,
        deps = deps + parts,
        **kwargs
    )

def genrecall_py_extension(name, deps):
    """The Python extension module NAME.so of a package's bindings*.cc."""
    native.cc_binary(
        name = name + ".so",
        srcs = native.glob(["bindings*.cc", "bindings*.h"]),
        copts = GENRECALL_COPTS,
        linkshared = 1,
        visibility = ["//visibility:public"],
        deps = deps + ["@genrecall_pybind11//:pybind11"],
    )

def genrecall_py_tests(files, deps, data, slow = []):
    """One py_test a file, each run by pytest."""
    for path in files:
        native.py_test(
            name = path[:-len(".py")],
            srcs = [path, "bazel_main.py"],
            main = "bazel_main.py",
            args = ["$(rootpath %s)" % path],
            data = data,
            size = "large" if path in slow else "medium",
            deps = deps,
        )
