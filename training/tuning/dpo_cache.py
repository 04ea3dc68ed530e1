"""What a DPO run computes once and finds again when it is resumed: files named by what they depend
on. Knows no model.
"""

import hashlib
import os

from genrecall.training import files


def key_of(**parts):
    """sha256 hex of named strings."""
    text = "".join(f"{name}={value}\n" for name, value in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def checkpoint_digest(folder):
    """sha256 hex of all files of a checkpoint folder, names included."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            digest.update(f"{name}\0".encode())
            with open(path, "rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def cached(path, key, compute):
    """The arrays of an .npz file made for this key, or those of `compute`, which then are written.

    Args:
      path: of the file; one made for another key, or a damaged one, is replaced.
      key: str, of everything the arrays depend on.
      compute: called without arguments, returns {name: array}.

    Returns:
      ({name: array}, whether they were found).
    """
    if os.path.exists(path):
        try:
            arrays = files.read_npz(path)
        except ValueError:
            arrays = {}
        if str(arrays.pop("key", "")) == key:
            return arrays, True
    arrays = compute()
    files.write_npz(path, key=key, **arrays)
    return arrays, False
