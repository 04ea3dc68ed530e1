"""`genrecall index`: the catalogue of a data folder, compiled to one recall index. Knows no
model.
"""

import os

import numpy as np

from genrecall import kernels
from genrecall.kernels import prompt_spec
from genrecall.training.dataset import splits, training_part
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.prompting import prompts
from genrecall.training.semantic_ids.sid_table import SemanticIds

WEIGHTS = ("popularity", "ecpm")


def build_index(items, sids, spec, sid_space_digest, weight):
    """A recall index of all items of a data folder.

    Args:
      items: data_folder.Items.
      sids: sid_table.SemanticIds that have every item.
      spec: PromptSpec (its facets become the index's).
      sid_space_digest: name of the SID space.
      weight: float32 [N] by row of `items`.

    Returns:
      kernels.RecallIndex.
    """
    codes = item_codes(items, sids)
    facets = prompts.item_facets(spec, items) if spec.facets else None
    return kernels.RecallIndex.build(
        sids.level_sizes, items.ids, codes, weight, facets, sid_space_digest=sid_space_digest
    )


def item_codes(items, sids):
    """The codes of each item of a data folder, in its order: int32 [N, L]."""
    row_of = {int(i): r for r, i in enumerate(sids.item_id)}
    return sids.codes[[row_of[int(i)] for i in items.ids]]


def item_weights(data, kind, hold_out="valid"):
    """What orders items of equal standing, float32 [N]: "popularity" = occurrences in the training
    part, less what it holds out (of splits.HOLD_OUT); "ecpm", where items without one get the mean.

    Raises:
      ValueError: an unknown kind; "ecpm" for a folder whose items have none.
    """
    if kind == "popularity":
        lines = splits.clean_lines(data.events)
        return splits.popularity(lines, data.items, hold_out).astype(np.float32)
    if kind != "ecpm":
        raise ValueError(f"weight = {kind!r}: expected one of {', '.join(WEIGHTS)}")
    known = np.isfinite(data.items.ecpm)
    if not known.any():
        raise ValueError(f"{data.path}: weight = 'ecpm', but no item has an ecpm")
    return np.where(known, data.items.ecpm, data.items.ecpm[known].mean()).astype(np.float32)


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="checkpoint folder of `genrecall sft`"
    )
    parser.add_argument(
        "--semantic_ids",
        required=True,
        metavar="NPZ",
        help="semantic_ids.npz of `genrecall tokenize`",
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="recall index to write (.gguf)"
    )
    parser.add_argument(
        "--weight",
        choices=WEIGHTS,
        default="popularity",
        help="order of items that share a SID",
    )


def main(args):
    data = read_data(args.data)
    sids = SemanticIds.load(args.semantic_ids)
    sids.check_items(data.items, args.semantic_ids)
    space = prompt_spec.SidSpace.load(os.path.join(args.checkpoint, "sid_space.json"))
    if space.codebook_digest != sids.codebook_digest:
        raise ValueError(
            f"{args.semantic_ids}: codebook digest {sids.codebook_digest[:12]}: expected "
            f"{space.codebook_digest[:12]}, which {args.checkpoint} was trained on"
        )
    spec = prompt_spec.PromptSpec.from_json(os.path.join(args.checkpoint, "prompt_spec.json"))
    weight = item_weights(data, args.weight, training_part.read(args.checkpoint))
    index = build_index(data.items, sids, spec, space.digest, weight)
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    index.save(args.output)
    size_mb = os.path.getsize(args.output) / 1e6
    print(f"{args.output}: {index.num_items} items, {index.num_sids} SIDs, {size_mb:.1f} MB")
