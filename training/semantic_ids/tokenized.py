"""A catalogue's semantic IDs and everything that made them, as a value and as a folder. Knows no
training.

RUN/semantic_ids/:
  semantic_ids.npz   item_id int64 [N], codes int32 [N, L], base_codes int32 [N, L] (before
                     collisions were resolved), level_sizes int32 [L], codebook_digest
  codebooks.npz      codebook_<level> float32 [C, K]; of an RQ-VAE its encoder and decoder too;
                     level_sizes int32 [L]; codebook_digest
  vectorizer.npz     what gives new items vectors of the same space
"""

import os
from dataclasses import dataclass

from genrecall.training.semantic_ids.sid_table import SemanticIds
from genrecall.training.semantic_ids.sid_tokenizer import SidTokenizer
from genrecall.training.semantic_ids.vectorizer import Vectorizer


@dataclass(frozen=True)
class Tokenized:
    """The table, the tokenizer whose base codes it holds, and what made its vectors."""

    sids: SemanticIds
    tokenizer: SidTokenizer
    vectorizer: Vectorizer

    def save(self, folder):
        """Writes the three files, each beside its place and then renamed; the table last."""
        os.makedirs(folder, exist_ok=True)
        sizes, digest = self.sids.level_sizes, self.sids.codebook_digest
        self.vectorizer.save(os.path.join(folder, "vectorizer.npz"), digest)
        self.tokenizer.save(os.path.join(folder, "codebooks.npz"), sizes)
        self.sids.save(os.path.join(folder, "semantic_ids.npz"))

    @staticmethod
    def load(folder):
        """Reads the three files.

        Raises:
          FileNotFoundError: one of them is not there.
          ValueError: one is damaged, or of another tokenizer.
        """
        path = os.path.join(folder, "codebooks.npz")
        sids = SemanticIds.load(os.path.join(folder, "semantic_ids.npz"))
        tokenizer, digest = SidTokenizer.load(path)
        if digest != sids.codebook_digest:
            raise ValueError(f"{path}: not the codebooks of semantic_ids.npz beside it")
        path = os.path.join(folder, "vectorizer.npz")
        vectorizer, digest = Vectorizer.load(path)
        if digest != sids.codebook_digest:
            raise ValueError(f"{path}: not the vectorizer of codebooks.npz beside it")
        return Tokenized(sids, tokenizer, vectorizer)
