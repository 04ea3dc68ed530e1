"""What a killed run needs to go on as if it had not been killed. Knows no model.

A state holds the trained parameters, the optimizer's moments, the averaged weights and the loop's
position. Batches and dropout need none: they are functions of the seed and the position.
"""

import json
import os
import shutil

import torch

from genrecall.kernels.json_fields import read_json
from genrecall.training import files


class StateFolder:
    """The states of a run's stages, and the identity of the run that may resume from them.

    Args:
      path: the folder.
      identity: JSON-able dict of all that must be the same for the run to be the same run: options,
        data digest, … . Nested dicts are compared key by key.
    """

    def __init__(self, path, identity):
        self.path = path
        self.identity = json.loads(json.dumps(identity))

    def open(self, restart=False):
        """Makes the folder, or checks that the one there is this run's; on one process only.

        Args:
          restart: forget what is there.

        Raises:
          ValueError: it is the state of a run of another identity, with the first difference.
        """
        if restart:
            self.remove()
        path = os.path.join(self.path, "identity.json")
        if not os.path.exists(path):
            self.remove()
            files.write_json(path, self.identity)
            return
        for key, then, now in _differences(read_json(path), self.identity):
            raise ValueError(
                f"{self.path}: an unfinished run with {key} = {then!r}, now {now!r}: expected its "
                "configuration and data to resume it; --restart forgets it"
            )

    def stage(self, name):
        """The StateFile of a stage."""
        return StateFile(os.path.join(self.path, f"{name}.pt"))

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)


class StateFile:
    """One training loop's state; written beside and renamed."""

    def __init__(self, path):
        self.path = path

    def save(self, content):
        """Args: content: dict of tensors, numbers, texts, lists and dicts."""
        with files.replacing(self.path) as beside:
            torch.save(content, beside)

    def load(self, device="cpu"):
        """What was saved, or None when there is no file.

        Raises:
          ValueError: a damaged file.
        """
        if not os.path.exists(self.path):
            return None
        try:
            return torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:  # whatever unpickling a damaged file raises
            raise ValueError(
                f"{self.path}: not a readable training state: {error}; --restart forgets it"
            ) from error


def _differences(then, now, prefix=""):
    for key in {**then, **now}:
        a, b = then.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
