"""The `genrecall` command: one verb a job. Knows only which module does which verb."""

import argparse
import importlib
import os
import sys

from genrecall.serving.quiet import quiet_stderr

# verb -> (module of genrecall, one-line help). A module has configure(parser) and
# main(args) -> int | None, and is imported only when its verb runs, so that `genrecall serve` needs
# no PyTorch and `genrecall sft` no TensorFlow.
VERBS = {
    "synth": ("training.dataset.synth", "write a generated shop as a data folder"),
    "embed": ("training.semantic_ids.embed", "item texts to vectors; compare encoders"),
    "tokenize": (
        "training.semantic_ids.tokenize",
        "give every item of a data folder a semantic ID",
    ),
    "sft": ("training.tuning.sft", "expand the vocabulary and fine-tune the decoder"),
    "refit": ("training.tuning.refit", "fine-tune again, on what validation held out too"),
    "ablate": ("training.tuning.ablate", "what each prompt part and each task is worth"),
    "dpo": (
        "training.tuning.dpo",
        "teach a fine-tuned decoder which of its answers are better",
    ),
    "prompts": ("training.prompting.report", "show prompts, and what they take with other options"),
    "index": ("training.prompting.build_index", "compile the catalogue to a recall index"),
    "evaluate": ("training.evaluation.evaluate", "full-ranking evaluation by the CPU engine"),
    "quantize": ("training.tuning.quantize", "int8 weights and activations for a run's decoder"),
    "export": ("graphs.export", "compose the recall graph and export a SavedModel"),
    "serve": ("serving.server", "serve SavedModels as tensorflow_model_server does"),
    "query": ("query", "ask a server for one user's items"),
    "demo": ("demo", "the whole line, from data folder to served items"),
}


def main(argv=None):
    """Runs one verb, returns its exit status. Bad input: one line on stderr and status 2; with
    GENRECALL_TRACEBACK set, the traceback instead.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # no INFO lines of TensorFlow
    parser = argparse.ArgumentParser(
        prog="genrecall", description="Generative recall for TensorFlow Serving."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = next((a for a in argv if not a.startswith("-")), None)
    module = None
    for verb, (path, text) in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        if verb == chosen:
            with quiet_stderr():
                module = importlib.import_module(f"genrecall.{path}")
            module.configure(sub)
    args = parser.parse_args(argv)
    try:
        return module.main(args) or 0
    except (ValueError, OSError, RuntimeError) as error:  # damaged files: kernels.DataLossError
        if os.environ.get("GENRECALL_TRACEBACK"):
            raise
        print(f"genrecall {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
