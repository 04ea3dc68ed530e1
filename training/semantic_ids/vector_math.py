"""Small linear algebra on rows of vectors. Knows no items."""

import numpy as np


def unit_rows(x):
    """Rows scaled to length 1, float32; zero rows stay zero."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def nearest(queries, vectors, k):
    """The k rows of `vectors` with the largest cosine to each query, best first.

    Args:
      queries: float32 [Q, D].
      vectors: float32 [N, D], N >= 1.
      k: >= 1; at most N are found.

    Returns:
      (row int64 [Q, min(k, N)], cosine float32 of the same shape); ties: the order of faiss.
    """
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(unit_rows(vectors))
    cosine, row = index.search(unit_rows(queries), min(k, len(vectors)))
    return row, cosine


def nearest_others(vectors, k):
    """The k nearest other rows of every row, int64 [N, min(k, N - 1)]."""
    n, k = len(vectors), min(k, len(vectors) - 1)
    found = nearest(vectors, vectors, k + 1)[0]
    # A row is not always its own first: copies of it have the same cosine.
    is_self = found == np.arange(n)[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    return found[~is_self].reshape(n, k)
