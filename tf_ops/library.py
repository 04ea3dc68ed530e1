"""Finds and loads the op library, once. Knows no op."""

import functools
import pathlib

LIBRARY = "_genrecall_ops.so"


def path():
    """Path of the op library: beside this file, or in Bazel's runfiles.

    It is what `TF_LoadLibrary` in a C++ process opens, too.

    Raises:
      FileNotFoundError: it is not built; the message says how to.
    """
    beside = pathlib.Path(__file__).with_name(LIBRARY)
    if beside.exists():
        return str(beside)
    in_runfiles = _runfiles_path()
    if in_runfiles is not None and in_runfiles.exists():
        return str(in_runfiles)
    raise FileNotFoundError(
        f"the op library is not built: {beside} does not exist. Run `pip install .` in the "
        "checkout (`pip install -e .` to work in it), or `bazel build //tf_ops:_genrecall_ops.so`"
    )


def _runfiles_path():
    try:
        from runfiles import Runfiles
    except ImportError:
        return None
    runfiles = Runfiles.Create()
    found = runfiles.Rlocation(f"genrecall/tf_ops/{LIBRARY}") if runfiles else None
    return pathlib.Path(found) if found else None


@functools.cache
def _load():
    import tensorflow as tf

    return tf.load_op_library(path())


class _Ops:
    """The generated op functions; the library is loaded when the first is asked for."""

    def __getattr__(self, name):
        return getattr(_load(), name)


# ops.genrecall_expand_items(...), ...: loading raises FileNotFoundError as `path`, and
# tf.errors.NotFoundError when the library does not fit the installed TensorFlow. TensorFlow keeps
# it for good.
ops = _Ops()
