"""Repositories made from the Python that builds: TensorFlow's headers and libraries, pybind11 and Python headers.

PYTHON names the interpreter (default: python3 of PATH). Nothing is downloaded.
"""

def _python(ctx):
    python = ctx.os.environ.get("PYTHON") or "python3"
    path = ctx.which(python) if "/" not in python else ctx.path(python)
    if path == None:
        fail("Python '%s' not found: set PYTHON to the interpreter that has TensorFlow" % python)
    return path

def _ask(ctx, python, script):
    run = ctx.execute([python, "-c", script], environment = {"TF_CPP_MIN_LOG_LEVEL": "3"})
    if run.return_code != 0:
        fail("%s: %s" % (python, run.stderr.strip().split("\n")[-1]))
    return run.stdout.strip().split("\n")

def _tensorflow_impl(ctx):
    python = _python(ctx)
    include, lib = _ask(ctx, python, "import tensorflow as tf; print(tf.sysconfig.get_include());" +
                                     "print(tf.sysconfig.get_lib())")[-2:]
    ctx.symlink(include, "include")
    ctx.symlink(lib + "/libtensorflow_framework.so.2", "libtensorflow_framework.so.2")
    ctx.file("BUILD", """
cc_library(
    name = "framework",
    srcs = ["libtensorflow_framework.so.2"],
    hdrs = glob(["include/**"]),
    includes = ["include"],
    visibility = ["//visibility:public"],
)
""")

# In a TF Serving build this repository is replaced by one whose :framework is an alias of
# @org_tensorflow//tensorflow/core:framework (see README.md).
tensorflow_configure = repository_rule(
    implementation = _tensorflow_impl,
    environ = ["PYTHON", "PATH"],
    local = True,
)

def _pybind11_impl(ctx):
    python = _python(ctx)
    pybind, headers = _ask(ctx, python, "import pybind11, sysconfig; print(pybind11.get_include());" +
                                        "print(sysconfig.get_path('include'))")[-2:]
    ctx.symlink(pybind, "pybind11_include")
    ctx.symlink(headers, "python_include")
    ctx.file("BUILD", """
cc_library(
    name = "pybind11",
    hdrs = glob(["pybind11_include/**/*.h", "python_include/**/*.h"]),
    includes = ["pybind11_include", "python_include"],
    visibility = ["//visibility:public"],
)
""")

pybind11_configure = repository_rule(
    implementation = _pybind11_impl,
    environ = ["PYTHON", "PATH"],
    local = True,
)
