"""RQ-VAE: vectors -> a latent space -> residual codebooks -> the vectors again. Knows no items and
no files.

After Zeghidour et al., SoundStream (residual quantisation), van den Oord et al. (codebooks by
moving averages, commitment loss) and Rajput et al., TIGER (item vectors). Codes are chosen by the
nearest row of each level's codebook, as for residual k-means; what differs is the space they are
cut in. The optional contrastive term pulls together the quantised latents of items that occur
together, so that they come to share prefixes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from genrecall.training import config
from genrecall.training.config import option
from genrecall.training.semantic_ids import residual_kmeans
from genrecall.training.semantic_ids.sid_tokenizer import Layers, SidTokenizer

# Iterations of k-means on the latents, before the training and after it.
_FIRST_STEPS, _LAST_STEPS = 10, 10


@dataclass(frozen=True)
class RqVaeOptions:
    """The RQ-VAE and its training."""

    latent: int = option(32, "dimensions of the latent space", low=1, high=4096)
    hidden: tuple[int, ...] = option((256,), "widths of the encoder's hidden layers", low=1)
    epochs: int = option(60, "passes over the items", low=1)
    batch: int = option(512, "items a step", low=1)
    learning_rate: float = option(1e-3, "of AdamW, after warm-up; falls by a cosine", above=0)
    commitment: float = option(0.25, "weight of the commitment loss", low=0)
    decay: float = option(0.95, "of the codebooks' moving averages", low=0, below=1)
    restart_below: float = option(
        0.1, "a code used by fewer items of an average batch starts again at an item's", low=0
    )
    contrastive: float = option(
        0.0, "weight of the contrastive term between items that occur together; 0: none", low=0
    )
    temperature: float = option(0.1, "of the contrastive term", above=0)

    def __post_init__(self):
        config.check(self)


def fit(vectors, shape, options, seed, pairs=None, on_epoch=None):
    """Trains an RQ-VAE.

    Args:
      vectors: float32 [N, D].
      shape: (L, C); a level never has more codes than there are vectors.
      options: RqVaeOptions.
      seed: same seed, same result (on one machine, with one number of threads).
      pairs: scipy CSR [N, N] of how often items occur together, *training part only*; needed by the
        contrastive term.
      on_epoch: called with (epochs done, name -> mean loss) after each.

    Returns:
      (SidTokenizer, name -> mean loss over the last epoch).

    Raises:
      ValueError: a contrastive term without pairs.
    """
    if options.contrastive and pairs is None:
        raise ValueError("contrastive > 0: expected pairs of items that occur together")
    return _Training(vectors, shape, options, seed, pairs).run(on_epoch)


class _Training:
    def __init__(self, vectors, shape, options, seed, pairs):
        self.options, self.seed = options, seed
        self.rng = np.random.default_rng(seed)
        # One scale for every catalogue: the losses' weights mean the same.
        self.scale = float(np.sqrt(np.mean(vectors**2)) or 1.0)
        self.x = torch.from_numpy(vectors / self.scale)
        widths = (vectors.shape[1], *options.hidden, options.latent)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder, self.decoder = _network(widths), _network(widths[::-1])
        self.partners = _Partners(pairs) if options.contrastive else None
        with torch.no_grad():
            latents = self.encoder(self.x).numpy()
        start = residual_kmeans.fit_codebooks(latents, *shape, seed, _FIRST_STEPS)
        self.books = [_Codebook(book, options) for book in start]

    def run(self, on_epoch):
        options, n = self.options, len(self.x)
        weights = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimizer = torch.optim.AdamW(weights, options.learning_rate, weight_decay=1e-4)
        steps = options.epochs * -(-n // options.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps)),
        )
        means = {}
        for epoch in range(options.epochs):
            order, sums = self.rng.permutation(n), {}
            for first in range(0, n, options.batch):
                rows = order[first : first + options.batch]
                losses = self._losses(rows)
                optimizer.zero_grad()
                losses["total"].backward()
                optimizer.step()
                schedule.step()
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.item() * len(rows) / n
            means = sums
            if on_epoch:
                on_epoch(epoch + 1, means)
        return self._result(means)

    def _losses(self, rows):
        options = self.options
        anchors, partners = self.partners.draw(rows, self.rng) if self.partners else ((), ())
        x = self.x[np.concatenate([rows, partners]).astype(np.int64)]
        z = self.encoder(x)
        residual, said, commitment = z, torch.zeros_like(z), 0.0
        for book in self.books:
            chosen = book(residual.detach(), self.rng)
            commitment = commitment + ((residual - chosen) ** 2).mean()
            residual, said = residual - chosen, said + chosen
        straight = z + (said - z).detach()  # forward: what is said; backward: as if it were z
        losses = {
            "reconstruction": ((self.decoder(straight) - x) ** 2).mean(),
            "commitment": commitment,
        }
        total = losses["reconstruction"] + options.commitment * commitment
        if len(partners):
            losses["contrastive"] = _contrastive(
                straight[anchors], straight[len(rows) :], options.temperature
            )
            total = total + options.contrastive * losses["contrastive"]
        return {**losses, "total": total}

    def _result(self, means):
        encoder, decoder = _layers(self.encoder), _layers(self.decoder)
        (first, bias), *rest = encoder
        encoder = ((first / self.scale, bias), *rest)
        *rest, (last, bias) = decoder
        decoder = (*rest, (last * self.scale, bias * self.scale))
        encoder, decoder = Layers(encoder), Layers(decoder)
        # The moving averages are a little behind the latents: the last steps without the network.
        books = [np.ascontiguousarray(book.rows.numpy()) for book in self.books]
        latents = encoder(self.x.numpy() * self.scale)
        shape = len(books), len(books[0])
        books = residual_kmeans.fit_codebooks(latents, *shape, self.seed, _LAST_STEPS, books)
        return SidTokenizer(tuple(books), encoder, decoder), means


class _Codebook:
    """One level's codes, which follow what they are used for by moving averages."""

    def __init__(self, rows, options):
        self.rows = torch.from_numpy(rows)
        self.count = torch.ones(len(rows))
        self.total = self.rows.clone()
        self.decay, self.restart_below = options.decay, options.restart_below

    def __call__(self, residual, rng):
        """The nearest code of each residual float32 [B, D]: [B, D]; then moves the codes."""
        distance = (self.rows**2).sum(1) - 2 * residual @ self.rows.T
        code = distance.argmin(1)
        chosen = self.rows[code]
        size = len(self.rows)
        count = torch.bincount(code, minlength=size).float()
        total = torch.zeros_like(self.rows).index_add_(0, code, residual)
        # Counts in units of a batch in which every code is used equally often.
        share = size / len(residual)
        self.count = self.decay * self.count + (1 - self.decay) * count * share
        self.total = self.decay * self.total + (1 - self.decay) * total * share
        dead = torch.nonzero(self.count < self.restart_below).flatten()
        if len(dead):
            start = residual[torch.from_numpy(rng.integers(0, len(residual), len(dead)))]
            self.total[dead], self.count[dead] = start, 1.0
        self.rows = self.total / self.count.clamp(min=1e-6)[:, None]
        return chosen


class _Partners:
    """Draws, for items of a batch, items that occur together with them."""

    def __init__(self, pairs):
        pairs = pairs.tocsr()
        self.begin, self.other = pairs.indptr, pairs.indices
        self.reach = np.concatenate([[0.0], np.cumsum(pairs.data)])

    def draw(self, rows, rng):
        """(places in `rows` of those that have a partner, a partner's row of each), as often as
        they occur together.
        """
        low, high = self.reach[self.begin[rows]], self.reach[self.begin[rows + 1]]
        anchors = np.flatnonzero(high > low)
        at = low[anchors] + rng.random(len(anchors)) * (high - low)[anchors]
        place = np.searchsorted(self.reach, at, side="right") - 1
        place = np.minimum(place, self.begin[rows[anchors] + 1] - 1)
        return anchors, self.other[place]


def _contrastive(a, b, temperature):
    """Symmetric InfoNCE of a float [B, D] and their partners b [B, D]; the other rows are the
    negatives.
    """
    a, b = functional.normalize(a, dim=1), functional.normalize(b, dim=1)
    logits = a @ b.T / temperature
    target = torch.arange(len(a))
    both = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    return both / 2


def _network(widths):
    layers = []
    for into, out in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _layers(network):
    return tuple(
        (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
        for layer in network
        if isinstance(layer, nn.Linear)
    )
