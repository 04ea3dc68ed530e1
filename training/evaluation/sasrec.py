"""SASRec (Kang and McAuley, 2018) with full cross-entropy: the strongest plain baseline of
sequential recommendation. Knows no semantic IDs and no files.

A causal transformer over item embeddings; the output table is the input table. Every event of the
training part is a target, against all items of the catalogue (Klenitskiy and Vasilev, 2023, found
that the loss, not the architecture, is what newer models had ahead of it).
"""

import copy
import itertools
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from genrecall.training import config
from genrecall.training.config import option
from genrecall.training.evaluation import metrics, protocol
from genrecall.training.evaluation.full_softmax import FullSoftmax


@dataclass(frozen=True)
class SasrecOptions:
    """Model and training of SASRec."""

    dim: int = option(64, "width of the item embeddings", low=1)
    layers: int = option(2, "transformer blocks", low=1)
    heads: int = option(2, "attention heads", low=1)
    dropout: float = option(0.15, "of embeddings, attention and feed-forward", low=0, below=1)
    max_events: int = option(50, "of a history, the latest", low=1)
    learning_rate: float = option(4e-3, "of AdamW, at its peak", above=0)
    weight_decay: float = option(0.1, "of matrices", low=0)
    batch_events: int = option(1024, "events of a batch", low=1)
    warmup_epochs: int = option(1, "until the peak; from there a half cosine to 0", low=0)
    epochs: int = option(16, "passes over the data, at most", low=1)
    patience: int = option(4, "epochs without a better validation NDCG@10 that end it", low=1)
    valid_users: int = option(2500, "ranked after each epoch, at most", low=1)
    seed: int = option(0, "of weights and batches", low=0)

    def __post_init__(self):
        config.check(self)
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim}: expected a multiple of heads = {self.heads}")


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with dropout and a residual."""

    def __init__(self, options):
        super().__init__()
        d = options.dim
        self.heads, self.dropout = options.heads, options.dropout
        self.norm_attention, self.norm_forward = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.drop = nn.Dropout(options.dropout)

    def forward(self, x):
        """float32 [B, T, D] -> the same."""
        b, t, d = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        x = x + self.drop(self.out(seen.transpose(1, 2).reshape(b, t, d)))
        hidden = nn.functional.gelu(self.up(self.norm_forward(x)))
        return x + self.drop(self.down(self.drop(hidden)))


class Sasrec(nn.Module):
    """Item rows -> the hidden state that the next item's embedding is compared with.

    Args:
      num_items: N.
      options: SasrecOptions.
    """

    def __init__(self, num_items, options):
        super().__init__()
        self.options = options
        self.items = nn.Embedding(num_items, options.dim)
        self.places = nn.Embedding(options.max_events, options.dim)
        self.drop = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.dim)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=options.dim**-0.5)

    @property
    def table(self):
        """The output table, float32 [N, D]: the input table."""
        return self.items.weight

    def forward(self, rows):
        """int64 [B, T], oldest first -> float32 [B, T, D]. Padding belongs at the end, where no
        event sees it; any row will do.
        """
        x = self.items(rows) + self.places.weight[: rows.shape[1]]
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def padded(sequences, pad):
    """int64 arrays -> int64 [B, T], filled up at the end with `pad`."""
    width = max(len(s) for s in sequences)
    out = np.full((len(sequences), width), pad, np.int64)
    for row, sequence in zip(out, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(out)


class Scorer:
    """A trained Sasrec as a scorer for protocol.rank_by_scores."""

    def __init__(self, model):
        self.model = model.eval()

    @torch.inference_mode()
    def __call__(self, cases):
        """float32 [b, N]."""
        reach = self.model.options.max_events
        ends = cases.begin[1:]
        starts = np.maximum(cases.begin[:-1], ends - reach)
        recent = [cases.history[a:b] for a, b in zip(starts, ends, strict=True)]
        hidden = self.model(padded(recent, 0))
        last = hidden[torch.arange(len(recent)), torch.from_numpy(ends - starts) - 1]
        return (last @ self.model.table.T).numpy()


def windows(sequences, max_events):
    """Training sequences cut into pieces of at most max_events + 1 items, each of which but the
    first begins with the last item of the piece before: every item but a line's first is a target
    once.
    """
    pieces = []
    for sequence in sequences:
        ends = range(len(sequence), 1, -max_events)
        pieces += [sequence[max(0, end - max_events - 1) : end] for end in ends]
    return pieces


def event_batches(lengths, batch_events, generator):
    """Pieces of like length together, batches in random order: list of int64 arrays."""
    order = np.argsort(lengths + generator.random(len(lengths)), kind="stable")
    batch = np.cumsum(lengths[order]) // batch_events
    batches = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
    return [batches[i] for i in generator.permutation(len(batches))]


def fit(sequences, num_items, valid, options, report=lambda entry: None):
    """Trains SASRec; early stopping by validation.

    Args:
      sequences: list of int64 arrays: the training part of every line, as item rows.
      num_items: N.
      valid: protocol.Cases of the validation split; at most options.valid_users of them are used.
      options: SasrecOptions.
      report: called with each epoch's dict: epoch, loss, seconds, hr@10, ndcg@10.

    Returns:
      (Sasrec at its best epoch by NDCG@10, list of the dicts).

    Raises:
      ValueError: no user has two events in the training part.
    """
    chosen = np.random.default_rng(options.seed).permutation(len(valid))[: options.valid_users]
    valid = valid.take(np.sort(chosen))
    history, best = [], None
    for model, entry in _epochs(sequences, num_items, options):
        entry |= {k: v for k, v in _validate(model, valid).items() if k in ("hr@10", "ndcg@10")}
        history.append(entry)
        report(entry)
        if best is None or entry["ndcg@10"] > best["ndcg@10"]:
            best, best_state = entry, copy.deepcopy(model.state_dict())
        elif entry["epoch"] - best["epoch"] >= options.patience:
            break
    model.load_state_dict(best_state)
    return model, history


def refit(sequences, num_items, epochs, options, report=lambda entry: None):
    """Trains SASRec as `fit` does, on lines that hold the validation targets too: `epochs` passes
    of the same schedule, which validation found.

    Returns:
      (Sasrec, list of the dicts, as `fit` gives them but for the hit rates).
    """
    history = []
    passes = itertools.islice(_epochs(sequences, num_items, options), epochs)
    for model, entry in passes:  # noqa: B007 the last is what is returned
        history.append(entry)
        report(entry)
    return model, history


def best_epoch(history):
    """The epoch whose weights `fit` returned, from 1."""
    return max(history, key=lambda entry: entry["ndcg@10"])["epoch"]


def _epochs(sequences, num_items, options):
    """Yields (model, {"epoch", "loss", "seconds"}) after each pass."""
    pieces = windows(sequences, options.max_events)
    if not pieces:
        raise ValueError("no user has two events in the training part: nothing to learn from")
    generator = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    model = Sasrec(num_items, options)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay}, {"params": rest, "weight_decay": 0.0}],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )
    lengths = np.array([len(p) for p in pieces])
    started = time.monotonic()
    for epoch in range(1, options.epochs + 1):
        model.train()
        total = 0.0
        batches = event_batches(lengths, options.batch_events, generator)
        for number, batch in enumerate(batches):
            rate = learning_rate(epoch - 1 + (number + 1) / len(batches), options)
            total += _step(model, optimizer, rate, [pieces[i] for i in batch])
        loss = float(total / (lengths - 1).sum())
        yield model, {"epoch": epoch, "loss": loss, "seconds": time.monotonic() - started}


def learning_rate(epochs, options):
    """After `epochs` (a float) passes: linear to the peak, then a half cosine to 0."""
    warmup = options.warmup_epochs
    if epochs < warmup:
        return options.learning_rate * epochs / warmup
    rest = (epochs - warmup) / max(1e-9, options.epochs - warmup)
    return options.learning_rate * 0.5 * (1 + np.cos(np.pi * min(1.0, rest)))


def _step(model, optimizer, rate, pieces):
    """One step on pieces of lines; the sum of the loss over their events."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    rows = padded([p[:-1] for p in pieces], 0)
    target = padded([p[1:] for p in pieces], -1)
    hidden = model(rows)[target >= 0]
    loss = FullSoftmax.apply(hidden, model.table, target[target >= 0])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return float(loss.detach()) * len(hidden)


def _validate(model, cases):
    ranks = protocol.rank_by_scores(Scorer(model), cases, np.arange(len(model.table)), 1).ranks
    return metrics.hit_rates(ranks, (10,))
