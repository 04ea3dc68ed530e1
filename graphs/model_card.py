"""The model card: what was exported from what, as plain JSON. Holds names and digests, no paths."""

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import platform

import tensorflow as tf

from genrecall.graphs.recall_graph import OUTPUTS

FORMAT_VERSION = 1


def model_card(artefacts, graph, weights, *, engine, version, retokenized_share) -> dict:
    """The card of one export.

    Args:
      artefacts: Artefacts. graph: the RecallGraph. weights: what checkpoint.model_card gives.
      engine: dict of engine options. version: number of the export.
      retokenized_share: of sampled prompts, the share that would tokenize differently as whole
        strings; None: no tokenizer in the checkpoint folder to tell.
    """
    index, prompt = artefacts.index, artefacts.prompt
    options = {k: v for k, v in vars(graph.options).items()}
    return {
        "format_version": FORMAT_VERSION,
        "version": version,
        "exported_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "exported_with": {
            "genrecall": _version("genrecall"),
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
        "sid_space": {
            "digest": artefacts.sid_space.digest,
            "level_sizes": list(artefacts.sid_space.level_sizes),
        },
        "model": {"checkpoint": artefacts.checkpoint.resolve().name, **weights},
        "index": {
            "file": artefacts.index_path.name,
            "checksum": f"{index.checksum:08x}",
            "items": index.num_items,
            "semantic_ids": index.num_sids,
            "facets": index.num_facets,
        },
        "prompt": {
            "sha256": hashlib.sha256(artefacts.prompt_path.read_bytes()).hexdigest(),
            "max_tokens": prompt.max_tokens,
            "retokenized_share": retokenized_share,
            "spec": json.loads(prompt.spec_json),
        },
        "branches": list(graph.branch_names),
        "options": {**options, "engine": dict(engine)},
        "signatures": {
            "serving_default": {
                "inputs": [i.to_json() for i in graph.inputs],
                "outputs": [
                    {"name": name, "dtype": dtype, "shape": shape, "doc": doc}
                    for name, (dtype, shape, doc) in OUTPUTS.items()
                ],
            },
            "explain": "the same inputs; also every branch's details, such as prompts and beams",
        },
    }


def write_model_card(path, card):
    """Writes the card; its folder is made."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
