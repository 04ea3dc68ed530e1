"""`genrecall tokenize`: every item of a data folder gets a semantic ID. Knows no decoder and no
vocabulary.

Writes RUN/semantic_ids/ (what tokenized.py says, and report.json, report.txt, report.html) and
RUN/tokenize.config.json, RUN/tokenize.metrics.json (see training/manifest.py).
"""

import os
from dataclasses import asdict, dataclass, replace

import numpy as np

from genrecall.training import config, manifest
from genrecall.training.config import option
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.semantic_ids import (
    collisions,
    new_items,
    report,
    report_page,
    residual_kmeans,
    rqvae,
)
from genrecall.training.semantic_ids.cooccurrence import pair_counts
from genrecall.training.semantic_ids.rqvae import RqVaeOptions
from genrecall.training.semantic_ids.sid_table import SemanticIds
from genrecall.training.semantic_ids.sid_tokenizer import SidTokenizer
from genrecall.training.semantic_ids.tokenized import Tokenized
from genrecall.training.semantic_ids.vectorizer import (
    Vectorizer,
    VectorOptions,
    training_sequences,
)


@dataclass(frozen=True)
class TokenizeOptions:
    """How items get semantic IDs."""

    method: str = option("kmeans", "residual k-means or RQ-VAE", choices=("kmeans", "rqvae"))
    levels: int = option(4, "codes per item", low=1, high=8)
    codes: int = option(
        0, "codes per level; 0: 256, fewer for catalogues under 2048 items", low=0, high=32768
    )
    collisions: str = option(
        "resolve",
        "items that get the same codes: resolve gives each its own by extending the last level, "
        "allow lets them share one semantic ID",
        choices=("resolve", "allow"),
    )
    spare_codes: int = option(16, "last-level codes kept for new items", low=0, high=32767)
    seed: int = option(0, "same seed, same semantic IDs", low=0, high=2**31 - 1)
    vectors: VectorOptions = config.nested(VectorOptions)
    rqvae: RqVaeOptions = config.nested(RqVaeOptions)

    def __post_init__(self):
        config.check(self)


def codes_for(num_items):
    """Codes per level for a catalogue: 256 from 2,048 items on, below that the largest power of
    two <= items / 8.
    """
    return int(min(256, max(8, 2 ** int(np.log2(max(num_items / 8, 1))))))


def tokenize_items(data, options, on_epoch=None):
    """Data folder -> Tokenized.

    Args:
      data: data_folder.DataSet.
      options: TokenizeOptions.
      on_epoch: see rqvae.fit.
    """
    vectorizer = Vectorizer.fit(data, options.vectors, options.seed)
    vectors = vectorizer.fitted
    tokenizer = fit_tokenizer(vectors, data, options, on_epoch)
    quantised = tokenizer.quantise(vectors)
    codes, sizes = quantised.codes, tokenizer.base_sizes
    if options.collisions == "resolve":
        distance = np.linalg.norm(quantised.residual, axis=1)
        codes, last = collisions.resolve_collisions(codes, distance, sizes[-1])
        sizes = (*sizes[:-1], last + options.spare_codes)
    sids = SemanticIds(data.items.ids, codes, sizes, tokenizer.digest(sizes), quantised.codes)
    return Tokenized(sids, tokenizer, vectorizer)


def fit_tokenizer(vectors, data, options, on_epoch=None):
    """Trains what the options ask for on vectors float32 [N, D]: SidTokenizer."""
    size = options.codes or codes_for(len(vectors))
    if options.method == "kmeans":
        books = residual_kmeans.fit_codebooks(vectors, options.levels, size, options.seed)
        return SidTokenizer(tuple(books))
    pairs = None
    if options.rqvae.contrastive:
        pairs = pair_counts(training_sequences(data), data.items.row_of, options.vectors.window)
    shape = options.levels, size
    return rqvae.fit(vectors, shape, options.rqvae, options.seed, pairs, on_epoch)[0]


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument(
        "--output", required=True, metavar="RUN", help="run folder; writes RUN/semantic_ids"
    )
    parser.add_argument(
        "--extend",
        metavar="RUN",
        help="keep the tokenizer and the semantic IDs of this run, and give the items of --data "
        "that have none theirs; of the options below only --collisions counts: allow lets a new "
        "item share a semantic ID when no code is left for it",
    )
    config.add_arguments(parser, TokenizeOptions)


def main(args):
    data = read_data(args.data)
    made, metrics = _extend(data, args) if args.extend else _train(data, args)
    folder = os.path.join(args.output, "semantic_ids")
    made.save(folder)
    vectors = made.vectorizer.vectors_of(data, np.arange(len(data.items)))
    measured = {**report.measure(data, made, vectors), **metrics}
    report_page.write(folder, measured)
    manifest.finish(args.output, "tokenize", measured)
    print(f"{folder}: {report.summary(measured)}")


def _train(data, args):
    """(Tokenized, what more to report) of a new tokenizer."""
    options = config.from_args(TokenizeOptions, args)
    manifest.write(args.output, "tokenize", options, data=data, seed=options.seed)
    losses = {}

    def on_epoch(done, means):
        losses.update(means)
        if done % 20 == 0 or done == options.rqvae.epochs:
            said = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
            print(f"epoch {done} of {options.rqvae.epochs}: {said}", flush=True)

    return tokenize_items(data, options, on_epoch), {"losses": losses} if losses else {}


def _extend(data, args):
    """(Tokenized, what more to report) of a run's tokenizer and table, with the new items in.

    Raises:
      ValueError: options other than the run's; no code left for a new item.
    """
    trained = config.load(TokenizeOptions, path=manifest.config_path(args.extend, "tokenize"))
    run = {args.extend: config.as_dict(trained)}
    options = config.from_args(TokenizeOptions, args, run, lambda _: args.extend)
    if replace(options, collisions=trained.collisions) != trained:
        raise ValueError(f"--extend {args.extend}: expected its own options, but for --collisions")
    before = Tokenized.load(os.path.join(args.extend, "semantic_ids"))
    made, extension = new_items.extend(data, before, options.collisions == "allow")
    print(extension)
    more = {"extension": asdict(extension), "extends": os.path.abspath(args.extend)}
    manifest.write(args.output, "tokenize", options, data=data, seed=options.seed, extra=more)
    return made, more
