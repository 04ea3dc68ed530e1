"""Artefacts -> the recall graph: where files, engine options and branches come together."""

import gguf

from genrecall import tf_ops
from genrecall.graphs.artefacts import Artefacts
from genrecall.graphs.generative import GenerativeBranch, ModelShape
from genrecall.graphs.options import RecallOptions
from genrecall.graphs.popular import PopularBranch
from genrecall.graphs.recall_graph import RecallGraph


def build_recall_graph(
    artefacts: Artefacts, weights, options: RecallOptions | None = None, *, engine=None, branches=()
) -> RecallGraph:
    """The recall graph with the generative branch, then `branches`, then the popular branch.

    Args:
      artefacts: checked files.
      weights: model.gguf of the same SID space, see `trtllm_bridge.checkpoint.convert`.
      options: RecallOptions; None: the defaults.
      engine: dict of EngineResource's options, such as {"num_threads": 4}.
      branches: Branches of one's own, see examples/custom_branch.py.

    Raises:
      ValueError: weights of another SID space.
    """
    options = options or RecallOptions()
    digest, hidden_size = _read_weights_header(weights)
    if digest != artefacts.sid_space.digest:
        raise ValueError(
            f"{weights}: sid_space_digest {digest!r}: expected {artefacts.sid_space.digest!r}"
        )
    features = artefacts.prompt.features
    levels, facets = len(artefacts.sid_space.level_sizes), artefacts.index.num_facets
    generative = GenerativeBranch(
        tf_ops.EngineResource(weights, **(engine or {})),
        tf_ops.PromptResource(artefacts.prompt_path, sid_space_digest=digest),
        features,
        artefacts.prompt.clean_options,
        ModelShape(levels, facets, hidden_size),
        normalize=options.normalize,
        temperature=options.temperature,
        prefix_caps=options.prefix_caps,
        per_sid_cap=options.per_sid_cap,
    )
    return RecallGraph(
        tf_ops.RecallIndexResource(artefacts.index_path, sid_space_digest=digest),
        levels=levels,
        facets=facets,
        branches=[generative, *branches, PopularBranch()],
        features=features,
        options=options,
    )


def _read_weights_header(path):
    """(sid_space_digest, hidden size) of a weights file, without reading the weights."""
    fields = gguf.GGUFReader(str(path)).fields

    def value(key):
        if key not in fields:
            raise ValueError(f"{path}: no metadata {key!r}: not written by `convert`")
        return fields[key].contents()

    digest = value("genrecall.sid_space_digest")
    return digest, int(value(f"{value('general.architecture')}.embedding_length"))
