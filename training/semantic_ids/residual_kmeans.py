"""Vectors to codes: residual k-means, and the resolution of collisions. Knows no items, no files
and no model.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quantised:
    """codebooks: L arrays float32 [C, D]; codes int32 [N, L]; residual float32 [N, D], what the
    codes leave unsaid.
    """

    codebooks: list
    codes: np.ndarray
    residual: np.ndarray


def residual_kmeans(vectors, levels, codes_per_level, seed, iterations=25):
    """Level after level, k-means of what the levels before left over.

    Args:
      vectors: float32 [N, D], N >= 1.
      levels: L >= 1.
      codes_per_level: C >= 1; a level never has more codes than there are vectors.
      seed: same seed, same codes.

    Returns:
      Quantised.
    """
    import faiss

    residual = np.ascontiguousarray(vectors, np.float32).copy()
    n, dim = residual.shape
    size = min(codes_per_level, n)
    codebooks, codes = [], np.zeros((n, levels), np.int32)
    for level in range(levels):
        kmeans = faiss.Kmeans(
            dim,
            size,
            niter=iterations,
            nredo=1,
            seed=seed + level,
            max_points_per_centroid=1 << 20,
            min_points_per_centroid=1,
        )
        kmeans.train(residual)
        codes[:, level] = kmeans.index.search(residual, 1)[1][:, 0]
        codebooks.append(kmeans.centroids.copy())
        residual -= kmeans.centroids[codes[:, level]]
    return Quantised(codebooks, codes, residual)


def collision_rate(codes):
    """1 - distinct SIDs / items. codes: int32 [N, L]."""
    return 1.0 - len(np.unique(codes, axis=0)) / len(codes)


def resolve_collisions(codes, residual, last_level_size):
    """Makes every SID distinct by extending the last level.

    Of the items that share a SID, the one nearest to what the SID says (smallest residual, ties:
    earlier row) keeps it. The others, in the same order, get the codes last_level_size,
    last_level_size + 1, ... that are free under their prefix of L - 1 codes; prefixes count
    separately, so the level grows by the largest number of losers under one prefix, not by
    their total. The original code of a moved item stays known: the caller keeps `codes`.

    Args:
      codes: int32 [N, L].
      residual: float32 [N, D].
      last_level_size: C of the last level.

    Returns:
      (int32 [N, L], the last level's new size >= last_level_size).
    """
    resolved = codes.copy()
    distance = np.linalg.norm(residual, axis=1)
    order = np.lexsort((np.arange(len(codes)), distance))
    taken, extra = set(), {}
    size = last_level_size
    for row in order:
        sid = tuple(codes[row].tolist())
        if sid in taken:
            prefix = sid[:-1]
            code = last_level_size + extra.get(prefix, 0)
            extra[prefix] = extra.get(prefix, 0) + 1
            resolved[row, -1] = code
            size = max(size, code + 1)
        else:
            taken.add(sid)
    return resolved, size


def level_use(codes, level_sizes):
    """Per level: (share of its codes in use, perplexity of their distribution)."""
    out = []
    for level, size in enumerate(level_sizes):
        counts = np.bincount(codes[:, level], minlength=size)
        p = counts[counts > 0] / len(codes)
        out.append((float((counts > 0).mean()), float(np.exp(-(p * np.log(p)).sum()))))
    return out
