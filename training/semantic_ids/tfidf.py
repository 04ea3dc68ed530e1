"""Text to vectors without downloads: TF-IDF with a truncated SVD. Knows no items, no behaviours and
no codes.
"""

from dataclasses import dataclass

import numpy as np

from genrecall.training.semantic_ids.vector_math import unit_rows

# The most frequent terms of a kind that are kept: bounds the file that keeps them.
_MAX_TERMS = 60_000
_KINDS = (
    # (weight, how terms are found)
    (1.0, {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}),
    (0.5, {"analyzer": "char_wb", "ngram_range": (3, 5)}),
)


@dataclass(frozen=True)
class TfidfEncoder:
    """TF-IDF over words and word pairs, and beside them character 3-5-grams, projected by truncated
    SVD.

    terms: of each kind, str [T_k]; idf: of each kind, float64 [T_k]; axes: float16 [K, sum T_k].
    """

    terms: tuple
    idf: tuple
    axes: np.ndarray

    @staticmethod
    def fit(texts, dim, seed):
        """Learns terms and <= dim axes from texts; `seed` is of the randomised SVD.

        Raises:
          ValueError: the texts have no term at all.
        """
        from sklearn.decomposition import TruncatedSVD

        # Terms of one document say nothing about neighbours; where that leaves none, they stay.
        terms, idf = zip(*(_learn(texts, kind) for _, kind in _KINDS), strict=True)
        matrix = _matrix(texts, terms, idf)
        dim = min(dim, matrix.shape[0] - 1, matrix.shape[1] - 1)
        if dim < 1:
            axes = np.eye(matrix.shape[1])
        else:
            axes = TruncatedSVD(dim, random_state=seed).fit(matrix).components_
        return TfidfEncoder(terms, idf, axes.astype(np.float16))

    def encode(self, texts):
        """float32 [N, K] unit rows; all-zero where a text has no term that was learnt."""
        return unit_rows(_matrix(texts, self.terms, self.idf) @ self.axes.astype(np.float32).T)

    def arrays(self):
        arrays = {"axes": self.axes}
        for kind, (terms, idf) in enumerate(zip(self.terms, self.idf, strict=True)):
            # One UTF-8 text of lines: NumPy's own str arrays take 4 bytes a character, padded. No
            # term has a line end: both kinds split at white space.
            arrays[f"terms_{kind}"] = np.frombuffer("\n".join(terms).encode(), np.uint8)
            arrays[f"idf_{kind}"] = idf
        return arrays

    @staticmethod
    def from_arrays(arrays):
        kinds = range(len(_KINDS))
        terms = tuple(arrays[f"terms_{k}"].tobytes().decode() for k in kinds)
        return TfidfEncoder(
            tuple(tuple(t.split("\n")) if t else () for t in terms),
            tuple(arrays[f"idf_{k}"] for k in kinds),
            arrays["axes"],
        )


def _learn(texts, kind):
    """(terms, idf) of one kind, terms in the order of the matrix' columns."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    for min_df in (2, 1) if len(texts) >= 50 else (1,):
        vectorizer = TfidfVectorizer(min_df=min_df, max_features=_MAX_TERMS, **kind)
        try:
            vectorizer.fit(texts)
        except ValueError:  # scikit-learn: no terms left
            continue
        return tuple(vectorizer.get_feature_names_out().tolist()), vectorizer.idf_
    return (), np.zeros(0)


def _matrix(texts, terms, idf):
    """Weighted TF-IDF, CSR float64 [N, sum T_k]."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    parts = []
    for (weight, kind), words, rarity in zip(_KINDS, terms, idf, strict=True):
        if not words:
            parts.append(csr_matrix((len(texts), 0)))
            continue
        vectorizer = TfidfVectorizer(vocabulary=words, sublinear_tf=True, **kind)
        vectorizer.idf_ = rarity
        parts.append(vectorizer.transform(texts) * weight)
    if not any(p.shape[1] for p in parts):
        raise ValueError("the item texts have no word: expected titles, categories or attributes")
    return hstack(parts).tocsr()
