"""What a run was: its options, data, seed, packages and machine, and what it reached. Knows no
verb.

Every verb of training writes two files into its run folder:
  RUN/<verb>.config.json    before the work: what is needed to do it again; `--config` takes it
  RUN/<verb>.metrics.json   after it: what was measured, when it ended, how long it took
"""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import is_dataclass

from genrecall.training import config, files

# Distributions whose version may change a result; those that are not installed are left out.
_PACKAGES = (
    "genrecall",
    "accelerate",
    "faiss-cpu",
    "numpy",
    "peft",
    "scikit-learn",
    "tokenizers",
    "torch",
    "transformers",
)


def config_path(folder, verb):
    return os.path.join(folder, f"{verb}.config.json")


def metrics_path(folder, verb):
    return os.path.join(folder, f"{verb}.metrics.json")


def write(folder, verb, options, *, data=None, seed=None, extra=None):
    """Writes RUN/<verb>.config.json, and takes away the metrics of an earlier run of the verb.

    Args:
      folder: the run folder; made when it is not there.
      verb: name of the command.
      options: an options dataclass (see training.config), or a plain dict.
      data: what has a `path` and a `digest` (data_folder.DataFolder), or None.
      seed: int or None.
      extra: dict of more to record (digests, sizes); keys of its own.

    Returns:
      dict: what was written.

    Raises:
      ValueError: a key of `extra` that the manifest has itself.
    """
    manifest = {
        "verb": verb,
        "options": config.as_dict(options) if is_dataclass(options) else dict(options),
        "data": None if data is None else {"path": data.path, "digest": data.digest},
        "seed": seed,
        "started": _now(),
        "packages": package_versions(),
        "machine": machine(),
    }
    taken = set(extra or {}) & set(manifest)
    if taken:
        raise ValueError(f"extra[{sorted(taken)[0]!r}]: the manifest has this key itself")
    manifest |= extra or {}
    files.write_json(config_path(folder, verb), manifest)
    if os.path.exists(metrics_path(folder, verb)):
        os.remove(metrics_path(folder, verb))
    return manifest


def finish(folder, verb, metrics):
    """Writes RUN/<verb>.metrics.json: `metrics` (a dict), when the run ended and how many seconds
    after `write` that was.

    Raises:
      FileNotFoundError: `write` was not called.
    """
    with open(config_path(folder, verb), encoding="utf-8") as f:
        started = datetime.datetime.fromisoformat(json.load(f)["started"])
    finished = _now()
    seconds = (datetime.datetime.fromisoformat(finished) - started).total_seconds()
    files.write_json(
        metrics_path(folder, verb),
        {"verb": verb, "finished": finished, "seconds": seconds, "metrics": metrics},
    )


def package_versions():
    """Distribution -> version, of Python and the installed ones of _PACKAGES."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine():
    """Where this process runs: host's architecture, CPU model, cores it may use, PyTorch's device
    and threads where PyTorch is loaded.
    """
    about = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": "cpu",
    }
    torch = sys.modules.get("torch")  # verbs that never load it are not made to
    if torch is not None:
        about["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            about["device"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return about


def _cpu_model():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            models = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor()


def _now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
