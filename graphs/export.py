"""`genrecall export`: a checkpoint and a recall index -> one version of a servable SavedModel.

DIR/<version>/saved_model.pb, assets/{model,recall_index,prompt}.gguf,
              assets.extra/{tf_serving_warmup_requests,model_card.json}
"""

import contextlib
import dataclasses
import errno
import pathlib
import re
import shutil
import tempfile

import tensorflow as tf

from genrecall.graphs import model_card as cards
from genrecall.graphs import sample_requests as samples
from genrecall.graphs.artefacts import Artefacts, compile_prompt
from genrecall.graphs.build import build_recall_graph
from genrecall.graphs.loaded import LoadedModel
from genrecall.graphs.options import NORMALIZE, RecallOptions
from genrecall.kernels import prompt_spec
from genrecall.trtllm_bridge import checkpoint as checkpoints

PROMPTS_COMPARED = 200  # for the share that tokenizes differently as whole strings


def export(
    checkpoint,
    index,
    output,
    *,
    version=None,
    dtype="bfloat16",
    weights=None,
    options=None,
    engine=None,
    branches=(),
    warmup=8,
    check=True,
    report=print,
) -> pathlib.Path:
    """Exports a version, whole or not at all: it is made beside and renamed when it is complete.

    Args:
      checkpoint: Hugging Face folder with sid_space.json and prompt.gguf (or, to compile it from,
        prompt_spec.json and tokenizer.json).
      index: recall index file.
      output: the model's folder, whose numbered sub-folders are its versions; made if needed.
      version: None: one more than the highest there.
      dtype: of the weights, "bfloat16" or "float32".
      weights: a model.gguf to serve, such as `genrecall quantize` writes, in place of the
        checkpoint's, which is then not converted.
      options: RecallOptions. engine: dict of EngineResource's options.
      branches: one's own Branches.
      warmup: requests in the warm-up file, 0 for none.
      check: load the finished model and answer its warm-up requests before it is published.
      report: function of a line of text.

    Returns:
      The folder DIR/<version>.

    Raises:
      ValueError: artefacts that do not belong together, options out of range, a version < 1.
      FileExistsError: the version is there already, or another export came first with it.
      RuntimeError: the finished model failed its check.
      tf.errors.OpError: weights or an engine option were refused.
    """
    options, engine = options or RecallOptions(), dict(engine or {})
    output = pathlib.Path(output)
    version = next_version(output) if version is None else version
    if version < 1:
        raise ValueError(f"version = {version}: expected >= 1")
    if not 0 <= warmup <= samples.MAX_WARMUP:
        raise ValueError(f"warmup = {warmup}: expected 0..{samples.MAX_WARMUP}")
    target = output / str(version)
    if target.exists():
        raise FileExistsError(f"{target}: exists already; versions are never overwritten")
    with _sibling(target) as new, _sibling(target) as work:
        artefacts = _load(checkpoint, index, work)
        requests = samples.sample_requests(artefacts, warmup)
        links = _asset_sources(artefacts, work)
        if weights is None:
            report(f"convert {artefacts.checkpoint} to {dtype}")
            described = checkpoints.convert(artefacts.checkpoint, links["model"], dtype)
        else:
            described = checkpoints.describe(weights)
            links["model"].symlink_to(pathlib.Path(weights).resolve())
        report("compose the recall graph")
        graph = build_recall_graph(
            _with_files(artefacts, links), links["model"], options, engine=engine, branches=branches
        )
        tf.saved_model.save(graph, str(new), signatures=graph.signatures())
        if requests:
            samples.write_warmup(new / "assets.extra" / samples.WARMUP_FILE, requests)
        card = cards.model_card(
            artefacts,
            graph,
            described,
            engine=engine,
            version=version,
            retokenized_share=retokenized_share(artefacts),
        )
        cards.write_model_card(new / "assets.extra" / "model_card.json", card)
        if check:
            report("check the exported model")
            _check(new, requests)
        _publish(new, target)
    report(f"exported {target}")
    return target


def next_version(output) -> int:
    """One more than the highest numbered sub-folder; 1 for a folder without any."""
    output = pathlib.Path(output)
    names = [p.name for p in output.iterdir()] if output.is_dir() else []
    return max((int(n) for n in names if re.fullmatch(r"\d+", n)), default=0) + 1


def retokenized_share(artefacts):
    """Share of sample prompts that tokenize differently as whole strings; None: no tokenizer."""
    path = artefacts.checkpoint / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    prompts = []
    for r in samples.sample_requests(artefacts, PROMPTS_COMPARED, seed=1):
        features = {name: list(r[name]) for name, _ in artefacts.prompt.features}
        behaviors = [r[f"behavior_{x}"] for x in ("item", "action", "domain", "time", "length")]
        now = r["behavior_time"].max(axis=1)
        tokens, length, _ = artefacts.prompt.assemble(artefacts.index, *behaviors, now, features)
        prompts.append([int(t) for t in tokens[0, : length[0]]])
    return prompt_spec.share_retokenized(
        prompts,
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )


@contextlib.contextmanager
def _sibling(target):
    """A new folder beside `target`, of no version's name; gone at the end unless renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = pathlib.Path(tempfile.mkdtemp(prefix=f".export-{target.name}-", dir=target.parent))
    new.chmod(0o755)  # mkdtemp's 0700 would follow the rename, and the server is another user
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _load(checkpoint, index, work):
    """The artefacts; a checkpoint folder without a compiled prompt has its spec compiled."""
    prompt = pathlib.Path(checkpoint) / "prompt.gguf"
    if not prompt.is_file():
        prompt = work / "compiled_prompt.gguf"
        compile_prompt(checkpoint, prompt)
    return Artefacts.load(checkpoint, index, prompt)


def _publish(new, target):
    try:
        new.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise FileExistsError(f"{target}: another export came first with this version") from error


def _asset_sources(artefacts, work):
    """The files under the names their assets are to have."""
    links = {name: work / f"{name}.gguf" for name in ("model", "recall_index", "prompt")}
    links["recall_index"].symlink_to(artefacts.index_path.resolve())
    links["prompt"].symlink_to(artefacts.prompt_path.resolve())
    return links


def _with_files(artefacts, links):
    return dataclasses.replace(
        artefacts, index_path=links["recall_index"], prompt_path=links["prompt"]
    )


def _check(folder, requests):
    """Loads the model as a server does and asks it."""
    with LoadedModel(folder) as model:
        for request in requests or [{"user_id": [0]}]:
            answer = model({**request, "deadline_ms": [0]})
            status = answer["branch_status"].tolist()
            if any(status[0]):
                raise RuntimeError(f"a branch of the exported model failed: branch_status {status}")


def configure(parser):
    """Adds the verb's arguments."""
    defaults = RecallOptions()
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="Hugging Face folder of the decoder")
    add("--index", required=True, metavar="FILE", help="recall index")
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="the model's folder; a version is added to it",
    )
    add("--version", type=int, metavar="N", help="default: one more than the highest there")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights")
    add(
        "--weights",
        metavar="GGUF",
        help="weights file to serve, such as quantize writes, in place of the checkpoint's",
    )
    add("--num_items", type=int, default=defaults.num_items, help="K, items of an answer")
    add("--beam_width", type=int, default=defaults.beam_width, help="default of a request")
    add(
        "--max_beam_width",
        type=int,
        default=defaults.max_beam_width,
        help="widest a request may ask",
    )
    add("--normalize", choices=NORMALIZE, default=defaults.normalize, help="of log-probabilities")
    add("--temperature", type=float, default=defaults.temperature, help="divides the logits")
    add(
        "--prefix_caps",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="diversity: beams that may share their first code, first two codes, ...; 0: no cap",
    )
    add("--per_sid_cap", type=int, default=0, help="items of one semantic ID; 0: no cap")
    add(
        "--deadline_ms",
        type=int,
        default=defaults.deadline_ms,
        help="default of a request; 0: none",
    )
    add(
        "--reply_reserve_ms",
        type=int,
        default=defaults.reply_reserve_ms,
        help="of a deadline, kept from the branches to merge and answer",
    )
    add(
        "--quota",
        nargs="+",
        default=[],
        metavar="BRANCH=N",
        help="items a branch may place before the others fill up, such as generative=40 popular=10",
    )
    add(
        "--threads",
        type=int,
        default=0,
        help="engine threads; 0: GENRECALL_CPU_THREADS or all CPUs",
    )
    add("--warmup", type=int, default=8, metavar="N", help="requests in the warm-up file")
    add("--no_check", action="store_true", help="publish without loading the finished model once")


def main(args):
    """Runs the verb."""
    options = RecallOptions(
        num_items=args.num_items,
        beam_width=min(args.beam_width, args.max_beam_width),
        max_beam_width=args.max_beam_width,
        normalize=args.normalize,
        temperature=args.temperature,
        prefix_caps=tuple(args.prefix_caps),
        per_sid_cap=args.per_sid_cap,
        deadline_ms=args.deadline_ms,
        reply_reserve_ms=args.reply_reserve_ms,
        quotas=dict(parse_quota(text) for text in args.quota),
    )
    try:
        export(
            args.checkpoint,
            args.index,
            args.output,
            version=args.version,
            dtype=args.dtype,
            weights=args.weights,
            options=options,
            engine={"num_threads": args.threads},
            warmup=args.warmup,
            check=not args.no_check,
            report=lambda line: print(line, flush=True),
        )
    except tf.errors.OpError as error:
        raise RuntimeError(re.sub(r"^\{\{.*?\}\} | \[Op:.*$|\n.*", "", error.message)) from error


def parse_quota(text):
    """("generative", 40) of "generative=40"."""
    branch, _, number = text.partition("=")
    if not branch or not re.fullmatch(r"\d+", number):
        raise ValueError(f"--quota {text}: expected BRANCH=N")
    return branch, int(number)
