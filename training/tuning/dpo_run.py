"""What a DPO run starts from: a fine-tuned run opened again, its preferences, and what the
reference model says of them, each computed once. Knows no training loop.
"""

import os
import tempfile

import numpy as np

from genrecall.kernels import prompt_spec
from genrecall.training import config
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import evaluate, ranking
from genrecall.training.tuning import (
    checkpoint,
    dpo_cache,
    dpo_objective,
    preference_batches,
    preference_pairs,
    training_loop,
    vocabulary,
)
from genrecall.training.tuning.run import Run

_SCORED_TOKENS = 16384  # of a batch that is scored and not trained on


def reopen(data_folder, run_folder, output):
    """A fine-tuned run as it stands: RUN/checkpoint and RUN/semantic_ids -> Run.

    Args:
      data_folder, run_folder: paths.
      output: path, the folder of the Run; gets a copy of the semantic IDs, so that whatever takes a
        run folder takes it.

    Raises:
      FileNotFoundError, ValueError: what is missing or does not fit, by file.
    """
    data = read_data(data_folder)
    folder = os.path.join(run_folder, "checkpoint")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: missing; run `genrecall sft` first")
    model, tokenizer = checkpoint.load_decoder(folder)
    spec = prompt_spec.PromptSpec.from_json(os.path.join(folder, "prompt_spec.json"))
    maker = evaluate.load_maker(data, run_folder)
    space = prompt_spec.SidSpace.load(os.path.join(folder, "sid_space.json"))
    vocabulary.reopen_vocabulary(model, space)
    identity = {
        "data_digest": data.digest,
        "checkpoint_digest": dpo_cache.checkpoint_digest(folder),
        "index_checksum": str(maker.index.checksum),
    }
    return Run(output, data, maker.lines, model, tokenizer, space, spec, maker, identity)


def preferences_of(run, run_folder, options, say):
    """The preferences of a run, out of OUTPUT/cache/preferences.npz where it is this run's.

    Args:
      run: Run, as `reopen` gives it.
      run_folder: path; the engine proposes items with its checkpoint.
      options: DpoOptions.
      say: called with a line for the user.

    Returns:
      Preferences.
    """
    # Weights say how much a kind counts, not what its pairs are.
    pairs = {
        name: bool(value) if name.endswith("_weight") else value
        for name, value in config.as_dict(options.pairs).items()
    }
    key = dpo_cache.key_of(**run.identity, pairs=pairs, seed=options.loop.seed)

    def compute():
        say("asking the engine what it would recommend instead")
        with tempfile.TemporaryDirectory() as work:
            engine = ranking.open_engine(os.path.join(run_folder, "checkpoint"), work)
            made = preference_pairs.make_preferences(
                run.data, run.maker, engine, options.pairs, options.loop.seed
            )
        return preference_pairs.to_arrays(made)

    path = os.path.join(run.folder, "cache", "preferences.npz")
    arrays, found = dpo_cache.cached(path, key, compute)
    preferences = preference_pairs.from_arrays(arrays)
    counts = ", ".join(f"{n} {kind}" for kind, n in preferences.counts().items() if n)
    again = " (computed before)" if found else ""
    say(f"preferences after {len(preferences)} prompts: {counts}{again}")
    return preferences


def samples_of(run, preferences, objective, options, device, say):
    """PreferenceSamples with the reference model's scores, out of OUTPUT/cache/reference.npz where
    they are of this checkpoint and these answers.

    Args:
      objective: DpoObjective whose model has the weights of the reference still.
      device: of the objective.
    """
    weight = preference_batches.pair_weights(preferences, options.pairs.weights)
    samples = preference_batches.PreferenceSamples(run.maker, preferences, weight)
    key = dpo_cache.key_of(**run.identity, answers=preferences.digest(), softmax=options.softmax)

    def compute():
        batches = training_loop.token_batches(
            samples.lengths, _SCORED_TOKENS, np.random.default_rng(0)
        )
        return {"score": dpo_objective.score_answers(objective, samples, batches, device)}

    path = os.path.join(run.folder, "cache", "reference.npz")
    arrays, found = dpo_cache.cached(path, key, compute)
    samples.reference = arrays["score"]
    again = " (computed before)" if found else ""
    say(f"reference scores of {len(samples.reference)} answers{again}")
    return samples


def start_figures(run, validation, options):
    """What the reference model reaches on validation, out of OUTPUT/cache/start.npz where it is
    known: dict of floats.
    """
    key = dpo_cache.key_of(**run.identity, users=options.valid_users, seed=options.loop.seed)
    path = os.path.join(run.folder, "cache", "start.npz")
    arrays, _ = dpo_cache.cached(path, key, validation)
    return {name: float(value) for name, value in arrays.items()}
