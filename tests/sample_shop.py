"""Sample makers without a decoder: a tokenizer of one token a character, random SIDs."""

import numpy as np
from prompt_shop import sid_space, tokenize

from genrecall.kernels.prompt_spec import PromptSpec, compile_prompt
from genrecall.training.dataset import splits
from genrecall.training.prompting import build_index
from genrecall.training.prompting.samples import SampleMaker
from genrecall.training.semantic_ids.sid_table import SemanticIds

SPACE = sid_space([7, 5, 9])


def semantic_ids(items, seed=0):
    """Random SIDs of SPACE."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, c, len(items)) for c in SPACE.level_sizes], axis=1)
    return SemanticIds(items.ids, codes.astype(np.int32), SPACE.level_sizes, "books")


def make_maker(data, spec, folder, **options):
    """The SampleMaker of a JSON spec."""
    parsed = PromptSpec.from_json(spec)
    prompt = compile_prompt(parsed, tokenize, SPACE, folder / "prompt.gguf")
    sids = semantic_ids(data.items)
    weight = np.ones(len(data.items), np.float32)
    index = build_index.build_index(data.items, sids, parsed, SPACE.digest, weight)
    lines = splits.clean_lines(data.events, **splits.clean_options(parsed))
    return SampleMaker(lines, "valid", prompt, index, data.profiles, parsed, **options)
