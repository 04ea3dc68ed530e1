"""Item text, and text to vectors. Knows no behaviours and no codes.

Two encoders: any Transformers or sentence-transformers folder (mean pooling over tokens), and
TF-IDF with a truncated SVD, which needs nothing downloaded.
"""

import os

import numpy as np


def item_text(title, attributes, category):
    """One item as text: "title. category. attribute, attribute". Missing parts leave no trace; an
    item that has none is "unknown item"."""
    title, category = title.strip().rstrip("."), category.strip()
    rest = [a for a in dict.fromkeys(attributes) if a != category and a.lower() != "unknown"]
    parts = [p for p in (title, category, ", ".join(rest)) if p]
    return ". ".join(parts) or "unknown item"


def item_texts(items):
    """Texts of all items, in row order: list[str] [N]."""
    return [
        item_text(*row)
        for row in zip(items.titles, items.attributes, items.categories, strict=True)
    ]


def embed_texts(texts, encoder=None, dim=128, seed=0):
    """Texts -> unit vectors.

    Args:
      texts: N strings.
      encoder: folder of a Transformers encoder; None: TF-IDF + SVD.
      dim: at most this many dimensions (TF-IDF only; an encoder keeps its own).
      seed: of the randomised SVD.

    Returns:
      float32 [N, <= dim], rows of length 1 (all-zero where a text has no term that another text
      shares).
    """
    vectors = (
        tfidf_vectors(texts, dim, seed) if encoder is None else encoder_vectors(texts, encoder)
    )
    return unit_rows(vectors)


def tfidf_vectors(texts, dim, seed):
    """TF-IDF over words, word pairs and character 3-5-grams, projected by truncated SVD. float32
    [N, <= dim].
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    # Terms of one document say nothing about neighbours; in tiny catalogues that rule would leave
    # no terms.
    min_df = 2 if len(texts) >= 50 else 1
    words = TfidfVectorizer(
        ngram_range=(1, 2), min_df=min_df, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"
    )
    characters = TfidfVectorizer(
        analyzer="char_wb",
        ngram_range=(3, 5),
        min_df=min_df,
        max_features=60_000,
        sublinear_tf=True,
    )
    union = FeatureUnion(
        [("words", words), ("characters", characters)], transformer_weights={"characters": 0.5}
    )
    matrix = union.fit_transform(texts)
    dim = min(dim, matrix.shape[0] - 1, matrix.shape[1] - 1)
    if dim < 1:
        return matrix.toarray().astype(np.float32)
    return TruncatedSVD(dim, random_state=seed).fit_transform(matrix).astype(np.float32)


def encoder_vectors(texts, folder, batch_size=64, max_tokens=128):
    """Mean over the last hidden states of each text's tokens, by the encoder in `folder`. float32
    [N, hidden].

    A sentence-transformers folder keeps its encoder either at the top or in `0_Transformer`.
    Nothing is downloaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    nested = os.path.join(folder, "0_Transformer")
    folder = nested if os.path.isdir(nested) else folder
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise FileNotFoundError(
            f"{folder}: no config.json; expected a Transformers or sentence-transformers folder"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    order = sorted(
        range(len(texts)), key=lambda i: len(texts[i])
    )  # like lengths together: little padding
    out = None
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=max_tokens,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        if out is None:
            out = np.zeros((len(texts), mean.shape[1]), np.float32)
        out[rows] = mean.numpy()
    return out


def cooccurrence_vectors(sequences, row_of, dim, seed, window=4):
    """What is taken together: SVD of the positive pointwise mutual information of items near each
    other in a sequence.

    Args:
      sequences: item id arrays; *training part only*, or the codes would know the answers.
      row_of: item id -> row; N rows.
      dim: at most this many dimensions.
      window: pairs at distance d <= window count 1 / d.

    Returns:
      float32 [N, <= dim] unit rows; an item that was never seen with another has a zero row.
    """
    from scipy.sparse import coo_matrix
    from sklearn.utils.extmath import randomized_svd

    n = len(row_of)
    left, right, weight = [], [], []
    for sequence in sequences:
        rows = np.array([row_of[int(i)] for i in sequence], np.int64)
        for d in range(1, min(window, len(rows) - 1) + 1):
            left.append(rows[:-d])
            right.append(rows[d:])
            weight.append(np.full(len(rows) - d, 1.0 / d))
    dim = min(dim, n - 1)
    if not left or dim < 1:
        return np.zeros((n, max(dim, 1)), np.float32)
    left, right, weight = map(np.concatenate, (left, right, weight))
    counts = coo_matrix((weight, (left, right)), shape=(n, n)).tocsr()
    counts = (counts + counts.T).tocoo()
    total, marginal = counts.data.sum(), np.asarray(counts.tocsr().sum(axis=1)).ravel()
    counts.data = np.log1p(counts.data * total / (marginal[counts.row] * marginal[counts.col]))
    u, s, _ = randomized_svd(counts.tocsr(), dim, random_state=seed)
    return unit_rows((u * np.sqrt(s)).astype(np.float32))


def unit_rows(x):
    """Rows scaled to length 1; zero rows stay zero."""
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)
