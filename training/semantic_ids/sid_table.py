"""The item -> SID table of a catalogue, as a value and as a file. Knows no vectors and no
codebooks.
"""

from dataclasses import dataclass

import numpy as np

from genrecall.training import files


@dataclass(frozen=True)
class SemanticIds:
    """The item -> SID table of a catalogue.

    item_id int64 [N]; codes int32 [N, L]; level_sizes tuple of L ints, spare codes included;
    codebook_digest: hex; base_codes int32 [N, L]: what the tokenizer said before collisions were
    resolved, or None where that is not known.
    """

    item_id: np.ndarray
    codes: np.ndarray
    level_sizes: tuple
    codebook_digest: str
    base_codes: np.ndarray | None = None

    @staticmethod
    def load(path):
        """Reads a semantic_ids.npz.

        Raises:
          FileNotFoundError: no such file.
          ValueError: it is damaged, or another kind of file.
        """
        arrays = files.read_npz(path)
        missing = {"item_id", "codes", "base_codes", "level_sizes", "codebook_digest"} - set(arrays)
        if missing:
            raise ValueError(
                f"{path}: no array {sorted(missing)[0]!r}: expected a semantic_ids.npz"
            )
        sids = SemanticIds(
            arrays["item_id"],
            arrays["codes"],
            tuple(arrays["level_sizes"].tolist()),
            str(arrays["codebook_digest"]),
            arrays["base_codes"],
        )
        expected = len(sids.item_id), len(sids.level_sizes)
        for name in ("codes", "base_codes"):
            shape = getattr(sids, name).shape
            if shape != expected:
                raise ValueError(f"{path}: {name} has shape {shape}: expected {expected}")
        return sids

    def save(self, path):
        """Writes semantic_ids.npz."""
        files.write_npz(
            path,
            item_id=self.item_id,
            codes=self.codes,
            base_codes=self.base_codes,
            level_sizes=np.array(self.level_sizes, np.int32),
            codebook_digest=np.array(self.codebook_digest),
        )

    def check_items(self, items, path):
        """ValueError unless every item of the data folder has a SID."""
        missing = np.setdiff1d(items.ids, self.item_id)
        if len(missing):
            raise ValueError(
                f"{path}: no semantic ID for {len(missing)} items of the data, first {missing[0]}"
            )

    def rows_of(self, items):
        """The row of every item of a data folder, int64 [N]; it must have passed check_items."""
        row_of = {int(i): r for r, i in enumerate(self.item_id)}
        return np.array([row_of[int(i)] for i in items.ids], np.int64)
