"""Vectors to codes by residual k-means, and by the codebooks it leaves. Knows no items, no files
and no model.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quantised:
    """codes int32 [N, L]; residual float32 [N, D], what the codes leave unsaid."""

    codes: np.ndarray
    residual: np.ndarray


def fit_codebooks(vectors, levels, codes_per_level, seed, iterations=25, start=None):
    """Level after level, k-means of what the levels before left over.

    Args:
      vectors: float32 [N, D], N >= 1.
      levels: L >= 1.
      codes_per_level: C >= 1; a level never has more codes than there are vectors.
      seed: same seed, same codebooks.
      start: L codebooks to start from, float32 [min(C, N), D]; None: vectors at random.

    Returns:
      L codebooks float32 [min(C, N), D].
    """
    import faiss

    residual = np.ascontiguousarray(vectors, np.float32).copy()
    n, dim = residual.shape
    codebooks = []
    for level in range(levels):
        kmeans = faiss.Kmeans(
            dim,
            min(codes_per_level, n),
            niter=iterations,
            nredo=1,
            seed=seed + level,
            max_points_per_centroid=1 << 20,
            min_points_per_centroid=1,
        )
        kmeans.train(residual, init_centroids=None if start is None else start[level])
        book = kmeans.centroids.copy()
        codebooks.append(book)
        residual -= book[nearest_code(book, residual)]
    return codebooks


def quantise(codebooks, vectors):
    """The nearest code of every level, one level after the other.

    Args:
      codebooks: L arrays float32 [C_l, D].
      vectors: float32 [N, D].

    Returns:
      Quantised.
    """
    residual = np.ascontiguousarray(vectors, np.float32).copy()
    codes = np.zeros((len(residual), len(codebooks)), np.int32)
    for level, book in enumerate(codebooks):
        codes[:, level] = nearest_code(book, residual)
        residual -= book[codes[:, level]]
    return Quantised(codes, residual)


def nearest_code(book, vectors):
    """int64 [N]: the row of `book` [C, D] with the least squared distance to each vector [N, D]."""
    import faiss

    index = faiss.IndexFlatL2(book.shape[1])
    index.add(np.ascontiguousarray(book, np.float32))
    return index.search(np.ascontiguousarray(vectors, np.float32), 1)[1][:, 0]
