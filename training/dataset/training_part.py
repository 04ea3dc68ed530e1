"""Which events a checkpoint was trained on: a small file in its folder, so that nobody evaluates it
on what it has seen. Knows no model.
"""

import os

from genrecall.kernels.json_fields import Fields, read_json
from genrecall.training import files
from genrecall.training.dataset.splits import HOLD_OUT

FILE = "training_part.json"


def write(folder, hold_out):
    """Writes FILE into a checkpoint folder.

    Args:
      folder: path.
      hold_out: of splits.HOLD_OUT.
    """
    files.write_json(os.path.join(folder, FILE), {"hold_out": hold_out})


def read(folder):
    """What a checkpoint folder's training held out, of splits.HOLD_OUT; "valid" for one that does
    not say.

    Raises:
      ValueError: a damaged file.
    """
    path = os.path.join(folder, FILE)
    if not os.path.exists(path):
        return "valid"
    fields = Fields(read_json(path), path)
    hold_out = fields.text("hold_out")
    fields.finish()
    if hold_out not in HOLD_OUT:
        raise ValueError(f"{path}: hold_out = {hold_out!r}: expected one of {', '.join(HOLD_OUT)}")
    return hold_out


def check_unseen(hold_out, split, where):
    """Refuses to judge a checkpoint by targets it was trained on.

    Args:
      hold_out: of splits.HOLD_OUT; split: "valid" or "test"; where: the checkpoint, for the
        message.

    Raises:
      ValueError: the split's targets are in the training part.
    """
    if HOLD_OUT.index(hold_out) > HOLD_OUT.index(split):
        expected = "--split test" if hold_out == "test" else "a run that holds them out"
        raise ValueError(
            f"{where}: trained with hold_out = {hold_out!r}, on the {split} targets too: expected "
            f"{expected}"
        )
