"""Items to the vectors that codes are cut from: text, and beside it what is taken together. Knows
no codes.

A fitted vectorizer is kept with the tokenizer, so that items which appear later get vectors of the
same space, from their text and from whom they stand beside by then.
"""

import json
import os
from dataclasses import dataclass, field

import numpy as np

from genrecall.training import config, files
from genrecall.training.config import option
from genrecall.training.dataset import splits
from genrecall.training.semantic_ids.cooccurrence import CooccurrenceModel
from genrecall.training.semantic_ids.encoder_folder import FolderEncoder
from genrecall.training.semantic_ids.text import TextOptions, item_texts
from genrecall.training.semantic_ids.tfidf import TfidfEncoder
from genrecall.training.semantic_ids.vector_math import nearest, unit_rows

# An item that was never seen beside another takes its place from this many items that read alike.
_TEXT_NEIGHBOURS = 5


@dataclass(frozen=True)
class VectorOptions:
    """What the codes are cut from."""

    encoder: str = option(
        "tfidf",
        "item text to vectors: tfidf (nothing to download), the folder of a Transformers or "
        "sentence-transformers encoder, or an .npz that `genrecall embed` wrote",
        metavar="tfidf|DIR|NPZ",
    )
    dim: int = option(128, "dimensions of the TF-IDF vectors", low=1, high=4096)
    collaborative: float = option(
        1.0, "weight of co-occurrence beside text; 0: text alone", low=0, high=100
    )
    collaborative_dim: int = option(
        192, "dimensions of the co-occurrence vectors", low=1, high=4096
    )
    window: int = option(4, "items at most this far apart occur together", low=1, high=1000)
    text: TextOptions = config.nested(TextOptions)

    def __post_init__(self):
        config.check(self)


@dataclass(frozen=True)
class Vectorizer:
    """A fitted way from items to vectors.

    options; tfidf: the fitted encoder, None for others; encoder_digest: of another encoder's files,
    "" for TF-IDF; together: where items stand by co-occurrence; of the N items of the fit, whose
    ids `together` has: said float32 [N, Dt] and beside float32 [N, Dc], unit or zero rows.
    """

    options: VectorOptions
    tfidf: TfidfEncoder | None
    encoder_digest: str
    together: CooccurrenceModel
    said: np.ndarray = field(repr=False)
    beside: np.ndarray = field(repr=False)

    @staticmethod
    def fit(data, options, seed):
        """Fits on all items of a data folder and the training part of its lines.

        Raises:
          FileNotFoundError, ValueError: an encoder that is not one, vectors that lack an item.
        """
        ids = data.items.ids
        tfidf = None
        if options.encoder == "tfidf":
            texts = item_texts(data.items, options.text)
            tfidf = TfidfEncoder.fit(texts, options.dim, seed)
        said, digest = text_vectors(data.items, options, tfidf)
        sequences = training_sequences(data) if options.collaborative else []
        together, beside = CooccurrenceModel.fit(
            sequences, ids, options.collaborative_dim, options.window, seed
        )
        return Vectorizer(options, tfidf, digest, together, said, _lend(beside, said, beside, said))

    @property
    def item_id(self):
        """The items of the fit, int64 [N]."""
        return self.together.item_id

    @property
    def fitted(self):
        """What the codes of the items of the fit are cut from, float32 [N, Dt + Dc]."""
        return self._join(self.said, self.beside)

    def vectors_of(self, data, rows):
        """What codes are cut from, float32 [M, D], of some rows of a data folder's items. Those
        that the fit saw have the vectors of the fit, whatever the folder says of them now.

        Raises:
          ValueError: the encoder's folder is no longer the one of the fit.
        """
        ids = data.items.ids[rows]
        known = np.isin(ids, self.item_id)
        fitted = self.fitted
        row_of = {int(i): r for r, i in enumerate(self.item_id)}
        out = np.zeros((len(rows), fitted.shape[1]), np.float32)
        out[known] = fitted[[row_of[int(i)] for i in ids[known]]]
        if not known.all():
            out[~known] = self._place(data, data.items.take(np.asarray(rows)[~known]))
        return out

    def _place(self, data, items):
        said, digest = text_vectors(items, self.options, self.tfidf)
        if digest != self.encoder_digest:
            raise ValueError(
                f"{self.options.encoder}: digest {digest[:12]}: expected "
                f"{self.encoder_digest[:12]}, the encoder that the codes were cut from"
            )
        sequences = training_sequences(data) if self.options.collaborative else []
        beside = self.together.place(sequences, items.ids)
        beside = _lend(beside, said, self.beside, self.said)
        return self._join(said, beside)

    def _join(self, said, beside):
        if not self.options.collaborative:
            return said
        joined = np.concatenate([said, self.options.collaborative * beside], axis=1)
        return np.ascontiguousarray(joined, np.float32)

    def save(self, path, codebook_digest):
        """Writes vectorizer.npz, and into it which codebooks were cut from its vectors."""
        parts = {
            "together": self.together.arrays(),
            "fitted": {"said": self.said, "beside": self.beside},
            "tfidf": self.tfidf.arrays() if self.tfidf else {},
        }
        arrays = {f"{part}.{k}": v for part, of in parts.items() for k, v in of.items()}
        options = np.array(json.dumps(config.as_dict(self.options)))
        digest = np.array(self.encoder_digest)
        made = {"encoder_digest": digest, "codebook_digest": np.array(codebook_digest)}
        files.write_npz(path, options=options, **made, **arrays)

    @staticmethod
    def load(path):
        """Reads vectorizer.npz: (Vectorizer, codebook_digest).

        Raises:
          FileNotFoundError: no such file.
          ValueError: it is damaged, or another kind of file.
        """
        arrays = files.read_npz(path)
        parts = {}
        for name, value in arrays.items():
            part, _, key = name.partition(".")
            if key:
                parts.setdefault(part, {})[key] = value
        try:
            tfidf = TfidfEncoder.from_arrays(parts["tfidf"]) if "tfidf" in parts else None
            options = config.load(VectorOptions, overrides=json.loads(str(arrays["options"])))
            together = CooccurrenceModel.from_arrays(parts["together"])
            digest = str(arrays["encoder_digest"])
            fitted = Vectorizer(options, tfidf, digest, together, **parts["fitted"])
            return fitted, str(arrays["codebook_digest"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a vectorizer.npz, but: {error}") from error


def text_vectors(items, options, tfidf=None):
    """What the encoder of the options makes of the items' texts.

    Args:
      items: data_folder.Items.
      options: VectorOptions.
      tfidf: the fitted TfidfEncoder, where options.encoder is "tfidf".

    Returns:
      (float32 [N, D] unit rows, the encoder's digest).
    """
    if tfidf:
        return tfidf.encode(item_texts(items, options.text)), ""
    if options.encoder.endswith(".npz"):
        return stored_vectors(options.encoder, items)
    if not os.path.isdir(options.encoder):
        raise FileNotFoundError(
            f"encoder = {options.encoder!r}: expected tfidf, a folder or an .npz file"
        )
    encoder = FolderEncoder(options.encoder)
    vectors = encoder.encode(item_texts(items, options.text))
    return unit_rows(vectors), encoder.digest


def stored_vectors(path, items):
    """Vectors that `genrecall embed` wrote: (float32 [N, D] unit rows in the order of `items`,
    digest of their encoder).

    Raises:
      ValueError: another kind of file, or an item without a vector.
    """
    arrays = files.read_npz(path)
    missing = {"item_id", "vectors", "encoder_digest"} - set(arrays)
    if missing:
        raise ValueError(
            f"{path}: no array {sorted(missing)[0]!r}: expected an .npz of `genrecall embed`"
        )
    row_of = {int(i): r for r, i in enumerate(arrays["item_id"])}
    lacking = [int(i) for i in items.ids if int(i) not in row_of]
    if lacking:
        raise ValueError(f"{path}: no vector for {len(lacking)} items, first {lacking[0]}")
    rows = [row_of[int(i)] for i in items.ids]
    return unit_rows(arrays["vectors"][rows]), str(arrays["encoder_digest"])


def training_sequences(data):
    """The training part of a data folder's lines."""
    return splits.training_sequences(splits.clean_lines(data.events))


def _lend(together, said, known_together, known_said):
    """Rows of `together` that are zero, filled with the mean of those of the items that read most
    alike and have one; the others as they are.
    """
    lost = np.flatnonzero(~together.any(axis=1))
    lenders = np.flatnonzero(known_together.any(axis=1))
    if not len(lost) or not len(lenders):
        return together
    near, cosine = nearest(said[lost], known_said[lenders], _TEXT_NEIGHBOURS)
    weight = np.maximum(cosine, 0)[..., None]
    filled = together.copy()
    filled[lost] = unit_rows((known_together[lenders[near]] * weight).sum(axis=1))
    return filled
