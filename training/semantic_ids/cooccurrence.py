"""What is taken together: vectors of items from the users' lines. Knows no text and no codes.

Whoever calls passes the *training part* of the lines only: vectors, and the codes cut from them,
must not know the answers that evaluation asks for.
"""

from dataclasses import dataclass

import numpy as np

from genrecall.training.semantic_ids.vector_math import unit_rows

# In a small catalogue more dimensions would hold who happened to meet whom.
_ITEMS_PER_DIM = 3


def pair_counts(sequences, row_of, window):
    """How often, and how near, two items stand together.

    Args:
      sequences: item id arrays.
      row_of: item id -> row; N rows. Items without a row are passed over.
      window: a pair at distance d <= window counts 1 / d, both ways.

    Returns:
      scipy CSR float64 [N, N], symmetric.
    """
    from scipy.sparse import csr_matrix

    n = len(row_of)
    left, right, weight = [], [], []
    for sequence in sequences:
        rows = np.array([row_of.get(int(i), -1) for i in sequence], np.int64)
        for d in range(1, min(window, len(rows) - 1) + 1):
            a, b = rows[:-d], rows[d:]
            both = (a >= 0) & (b >= 0) & (a != b)
            left.append(a[both])
            right.append(b[both])
            weight.append(np.full(both.sum(), 1.0 / d))
    if not left:
        return csr_matrix((n, n))
    left, right, weight = map(np.concatenate, (left, right, weight))
    counts = csr_matrix((weight, (left, right)), shape=(n, n))
    return counts + counts.T


@dataclass(frozen=True)
class CooccurrenceModel:
    """SVD of the positive pointwise mutual information of items near each other, with what it takes
    to place an item that was not there.

    item_id int64 [N]; marginal float64 [N], the sum of an item's pair counts; fold float32 [N, D]:
    a row of mutual informations times this is a vector; window: as in pair_counts.
    """

    item_id: np.ndarray
    marginal: np.ndarray
    fold: np.ndarray
    window: int

    @staticmethod
    def fit(sequences, item_id, dim, window, seed):
        """Fits N items on the training part of the lines.

        Returns:
          (CooccurrenceModel, float32 [N, <= dim] unit rows); an item that was never seen with
          another has a zero row.
        """
        from sklearn.utils.extmath import randomized_svd

        n = len(item_id)
        counts = pair_counts(sequences, {int(i): r for r, i in enumerate(item_id)}, window)
        marginal = np.asarray(counts.sum(axis=1)).ravel()
        dim = min(dim, n // _ITEMS_PER_DIM)
        if not counts.nnz or dim < 1:
            empty = np.zeros((n, max(dim, 1)), np.float32)
            return CooccurrenceModel(item_id, marginal, empty, window), empty
        information = _information(counts, marginal, marginal)
        u, s, vt = randomized_svd(information, dim, random_state=seed)
        fold = (vt.T / np.sqrt(np.maximum(s, 1e-12))).astype(np.float32)
        return (
            CooccurrenceModel(item_id, marginal, fold, window),
            unit_rows((u * np.sqrt(s)).astype(np.float32)),
        )

    def place(self, sequences, new_id):
        """Vectors of items that were not fitted, from whom they stand beside now: float32 [M, D]
        unit rows, zero for an item that stands beside none of the fitted ones.

        Args:
          sequences: training part of the grown lines.
          new_id: int64 [M], none of them in item_id.
        """
        n = len(self.item_id)
        ids = np.concatenate([self.item_id, new_id])
        counts = pair_counts(sequences, {int(i): r for r, i in enumerate(ids)}, self.window)
        rows = counts[n:, :n]
        beside = np.asarray(rows.sum(axis=1)).ravel()
        return unit_rows(_information(rows, beside, self.marginal) @ self.fold)

    def arrays(self):
        return {
            "item_id": self.item_id,
            "marginal": self.marginal,
            "fold": self.fold,
            "window": np.array(self.window),
        }

    @staticmethod
    def from_arrays(arrays):
        return CooccurrenceModel(
            arrays["item_id"], arrays["marginal"], arrays["fold"], int(arrays["window"])
        )


def _information(counts, left, right):
    """log(1 + p(a, b) / (p(a) p(b))) of every pair that occurs, sparse like `counts`."""
    pairs = counts.tocoo()
    total = max(right.sum(), 1e-12)
    # A fitted item may have stood beside none when the model was fitted.
    marginal = left[pairs.row] * np.maximum(right[pairs.col], 1.0)
    pairs.data = np.log1p(pairs.data * total / marginal)
    return pairs.tocsr()
