"""The test split is for one final figure: an honest log of every time that a run's folder used it.
Knows no metric.
"""

import datetime
import hashlib
import json
import os


def path(run_folder):
    return os.path.join(run_folder, "test_uses.jsonl")


def read(run_folder):
    """The uses so far, oldest first: list of dicts as `record` writes them.

    Raises:
      ValueError: a line that is not JSON, by file and line.
    """
    if not os.path.exists(path(run_folder)):
        return []
    uses = []
    with open(path(run_folder), encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            try:
                uses.append(json.loads(line))
            except json.JSONDecodeError as error:
                where = f"{path(run_folder)}:{number}"
                raise ValueError(f"{where}: bad JSON: {error.msg}") from None
    return uses


def warning(run_folder):
    """What to tell whoever is about to use the test split."""
    uses = read(run_folder)
    before = "for the first time in this run folder"
    if uses:
        before = f"{len(uses)} time(s) before in this run folder, last {uses[-1]['time']}"
    return (
        f"warning: the test split is used, {before}; choices belong on --split valid "
        f"(recorded in {path(run_folder)})"
    )


def record(run_folder, checkpoint, options, num_users):
    """Appends one use: when, of which checkpoint, how."""
    use = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "checkpoint_digest": folder_digest(checkpoint),
        "users": num_users,
        "options": options,
    }
    with open(path(run_folder), "a", encoding="utf-8") as f:
        f.write(json.dumps(use, ensure_ascii=False) + "\n")


def folder_digest(folder):
    """sha256 hex of the weights files of a checkpoint folder, by name."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            digest.update(name.encode() + b"\0")
            with open(os.path.join(folder, name), "rb") as f:
                while chunk := f.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()
