"""Builds tests/cc_host.cc and serves SavedModels with it: no Python in that process."""

import functools
import hashlib
import os
import pathlib
import shlex
import subprocess
import tempfile

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from genrecall.tf_ops import library

SOURCE = pathlib.Path(__file__).with_name("cc_host.cc")


class HostError(Exception):
    """A request that the signature failed: `code` is the canonical one."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


@functools.cache
def build():
    """Path of the host; compiled once for each version of its source and of TensorFlow."""
    folder = tf.sysconfig.get_lib()
    flags = tf.sysconfig.get_compile_flags() + [
        f"-L{folder}",
        f"-Wl,-rpath,{folder}",
        "-Wl,--no-as-needed",  # else: no session factory
        "-l:libtensorflow_cc.so.2",
        "-l:libtensorflow_framework.so.2",
    ]
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    out = pathlib.Path(tempfile.gettempdir(), f"genrecall-cc-host-{os.getuid()}-{digest}")
    if not out.exists():
        new = out.with_suffix(f".{os.getpid()}")
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        subprocess.run([*compiler, "-O1", "-w", str(SOURCE), "-o", str(new), *flags], check=True)
        os.replace(new, out)
    return str(out)


def run(saved_model, inputs, signature="serving_default", env=None, libraries=(), timeout_s=120):
    """One request: as `run_many`, but raises HostError for a request that failed."""
    answer, elapsed_ms = run_many(saved_model, [inputs], signature, env, libraries, timeout_s)[0]
    if isinstance(answer, HostError):
        raise answer
    return answer, elapsed_ms


def run_many(
    saved_model, requests, signature="serving_default", env=None, libraries=(), timeout_s=120
):
    """Serves requests one after another in one fresh process.

    Args:
      saved_model: folder of a SavedModel.
      requests: list of dicts, input name -> anything `tf.make_tensor_proto` takes. An input that is
        left out takes the
        signature's default.
      signature: its key.
      env: environment variables set beside the inherited ones; GENRECALL_HOST_PAUSE_MS waits
        between requests.
      libraries: op libraries loaded after genrecall's own.

    Returns:
      list of (dict of output name -> NumPy array, milliseconds), with a HostError in the dict's
      place for a request that failed.

    Raises:
      RuntimeError: the model did not load; with what the host printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for i, request in enumerate(requests):
            pairs.append([pathlib.Path(folder, f"{kind}{i}") for kind in ("request", "answer")])
            for path in pairs[-1]:
                path.mkdir()
            for name, value in request.items():
                proto = value if isinstance(value, tensor_pb2.TensorProto) else _proto(value)
                (pairs[-1][0] / f"{name}.pb").write_bytes(proto.SerializeToString())
        all_libraries = ",".join([library.path(), *map(str, libraries)])
        command = [build(), str(saved_model), signature, all_libraries]
        command += [str(path) for pair in pairs for path in pair]
        process = subprocess.run(
            command,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "1", **(env or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
        if process.returncode != 0:
            raise RuntimeError(f"cc_host ended with {process.returncode}: {process.stderr[-4000:]}")
        return [_answer(answer) for _, answer in pairs]


def _proto(value):
    return tf.make_tensor_proto(value.numpy() if isinstance(value, tf.Tensor) else value)


def _answer(folder):
    error = folder / "error"
    if error.exists():
        code, message = error.read_text().split("\n", 1)
        return HostError(int(code), message), None
    outputs = {}
    for path in folder.glob("*.pb"):
        proto = tensor_pb2.TensorProto.FromString(path.read_bytes())
        outputs[path.stem] = tf.make_ndarray(proto)
    return outputs, float((folder / "elapsed_ms").read_text())
