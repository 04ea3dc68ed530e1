"""Writing so that a reader, or a killed run, finds the old file or the new one, never half of
one.
"""

import contextlib
import json
import os
import shutil
import zipfile
import zlib

import numpy as np


@contextlib.contextmanager
def replacing(path):
    """Yields a path beside `path` to write a file to; renames it over `path` when the block ends
    well.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        yield beside
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


@contextlib.contextmanager
def replacing_folder(path):
    """Yields an empty folder beside `path`; puts it in the place of `path` when the block ends
    well.

    A folder cannot be replaced in one step: the old one is moved away first, and is gone only after
    the new one stands.
    """
    beside, old = f"{path}.{os.getpid()}.tmp", f"{path}.{os.getpid()}.old"
    shutil.rmtree(beside, ignore_errors=True)
    os.makedirs(beside)
    try:
        yield beside
        if os.path.exists(path):
            os.replace(path, old)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path, value):
    with replacing(path) as beside, open(beside, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write("\n")


def write_text(path, text):
    with replacing(path) as beside, open(beside, "w", encoding="utf-8") as f:
        f.write(text)


def write_npz(path, **arrays):
    with replacing(path) as beside, open(beside, "wb") as f:
        np.savez(f, **arrays)


def read_npz(path):
    """name -> array of an .npz file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an .npz file, or a damaged one.
    """
    try:
        with np.lib.npyio.NpzFile(path, allow_pickle=False) as f:
            return dict(f)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz file: {error}") from error
