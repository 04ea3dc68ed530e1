"""A recall index replaced under load: how slow requests get, how soon the new one answers.

    python benchmarks/replacement.py model-int8.gguf [--shape 0.5b] [--items 10000000] [--clients 1]

Requests take the way of a served model: one graph acquires the index that serves, decodes with it
and expands the beams to items, while files are renamed into the directory that the index resource
watches. Every answer must come from one catalogue, and from the newest once that has answered.
One client keeps the compute threads busy; more share their steps. Prints the figures as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import bench_index
import numpy as np
import throughput
import workload

# The item ids of catalogue n begin here, so that an id tells the catalogue it came from.
FIRST_ITEM_ID = 10**12
POLL_S = int(os.environ.setdefault("GENRECALL_INDEX_POLL_MS", "1000")) / 1e3
ANSWER_WITHIN_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent and answered, in seconds, and the catalogue it came from."""

    sent: float
    answered: float
    catalogue: int

    @property
    def ms(self):
        return (self.answered - self.sent) * 1e3


@dataclass(frozen=True)
class Replacement:
    """When a catalogue was renamed into place, and when it first answered, in seconds."""

    catalogue: int
    renamed: float
    first_answer: float

    def overlaps(self, answer):
        """Whether the request ran between the rename and the end of the index that was replaced.

        That one is freed within a poll of its last request, which ends soon after the first answer.
        """
        return answer.answered > self.renamed and answer.sent < self.first_answer + 2 * POLL_S


def recall_graph(index, engine, shape, width):
    """tokens int32 [1, P] -> item_id int64 [1, width]: the generative branch from its prompt on."""
    import tensorflow as tf

    from genrecall import tf_ops

    @tf.function(input_signature=[tf.TensorSpec([1, None], tf.int32)])
    def recall(tokens):
        snapshot = tf_ops.acquire_index(index)
        zero = tf.zeros([1], tf.int32)
        beams = tf_ops.constrained_beam_search(
            engine,
            snapshot,
            tokens,
            length=tf.shape(tokens)[1:],
            stable_prefix=zero,
            beam_width=zero + width,
            deadline_ms=zero,
            priority=zero,
            seed=zero,
            levels=workload.LEVELS,
            hidden_size=workload.SHAPES[shape]["hidden_size"],
        )
        none = tf.zeros([1, 1], tf.int64)
        return tf_ops.expand_items(
            snapshot, beams.sids, beams.score, none, zero, zero + width, k=width
        ).item_id

    return recall


def catalogue_of(item_id):
    """The one catalogue that all items of an answer are of."""
    catalogues = np.unique(item_id // FIRST_ITEM_ID)
    assert len(catalogues) == 1 and catalogues[0] >= 0, f"an answer from catalogues {catalogues}"
    return int(catalogues[0])


def publish(path, watched):
    """Puts an index file into the watched directory, whole and as the newest; the time of it."""
    beside = watched / ".next"
    os.link(path, beside)
    os.utime(beside)
    renamed = time.perf_counter()
    beside.rename(watched / "recall_index.gguf")
    return renamed


def replace_under_load(ask, files, watched, args):
    """Publishes `files` in turn, `args.replacements` times, while clients ask.

    Args:
      ask: ask(i) sends request i and returns the catalogue that answered.
      files: {catalogue: index file}, two or more; the last one serves.
      watched: the directory.

    Returns:
      ([Answer], [Replacement])
    """
    answers, replacements, stop = [], [], threading.Event()

    def timed_ask(i):
        sent = time.perf_counter()
        catalogue = ask(i)
        answers.append(Answer(sent, time.perf_counter(), catalogue))

    def first_answer(catalogue, renamed):
        while time.perf_counter() < renamed + ANSWER_WITHIN_S and not clients.done():
            for answer in answers[::-1]:
                if answer.answered < renamed:
                    break
                if answer.catalogue == catalogue:
                    return answer.answered
            time.sleep(0.01)
        raise TimeoutError(f"catalogue {catalogue} has not answered in {ANSWER_WITHIN_S:.0f} s")

    with ThreadPoolExecutor(1) as pool:
        clients = pool.submit(
            throughput.keep_asking, timed_ask, args.clients, lambda: not stop.is_set()
        )
        try:
            time.sleep(args.seconds)
            for i in range(args.replacements):
                catalogue = list(files)[i % len(files)]
                renamed = publish(files[catalogue], watched)
                replaced = Replacement(catalogue, renamed, first_answer(catalogue, renamed))
                replacements.append(replaced)
                time.sleep(2 * POLL_S + args.seconds)
        finally:
            stop.set()
            clients.result()
    return answers, replacements


def check_answers(answers, replacements):
    """Whoever asks after a catalogue's first answer gets no older one."""
    for replaced, after in zip(replacements, [*replacements[1:], None], strict=True):
        until = after.renamed if after else np.inf
        for answer in answers:
            if replaced.first_answer < answer.sent and answer.answered < until:
                assert answer.catalogue == replaced.catalogue, f"{answer} after {replaced}"


def figures(answers, replacements):
    """The figures of one run, times in ms unless their name says otherwise."""
    seconds = max(a.answered for a in answers) - min(a.sent for a in answers)
    found = throughput.Latencies(np.array([a.ms for a in answers]), 0, seconds)
    p50, p99, slowest = found.percentiles(50, 99, 100)
    during = [[a.ms for a in answers if r.overlaps(a)] for r in replacements]
    return {
        "requests": len(answers),
        "per_second": found.per_second,
        "p50_ms": p50,
        "p99_ms": p99,
        "slowest_ms": slowest,
        "replaced_requests": sum(map(len, during)),
        "replaced_slowest_ms": max(map(max, during)),
        "slowest_over_p50": slowest / p50,
        "replaced_over_p50": max(map(max, during)) / p50,
        "each_slowest_ms": [max(ms) for ms in during],
        "first_answer_s": [r.first_answer - r.renamed for r in replacements],
        "first_answer_max_s": max(r.first_answer - r.renamed for r in replacements),
    }


def measure(args):
    """`figures` of replacing an index of `args.items` random items by others of that size."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files = {n: Path(folder) / f"{n}.gguf" for n in (1, 2)}
        watched = Path(folder) / "watched"
        watched.mkdir()
        # A process of its own: what a build has freed hides what loading costs.
        with ProcessPoolExecutor(1, get_context("spawn")) as builder:
            for n, path in files.items():
                first = n * FIRST_ITEM_ID
                builder.submit(bench_index.build_and_save, args.items, str(path), n, first).result()
        os.environ["GENRECALL_INDEX_DIR"] = str(watched)
        from genrecall.serving.quiet import quiet_stderr

        with quiet_stderr():
            from genrecall import tf_ops

            index = tf_ops.RecallIndexResource(files[2])
            engine = tf_ops.EngineResource(args.model, num_threads=args.threads)
            recall = recall_graph(index, engine, args.shape, args.width)
        words = workload.SHAPES[args.shape]["vocab_size"] - workload.LEVELS * workload.CODES
        prompts = np.random.default_rng(args.seed).integers(0, words, (16, 1, args.prompt_tokens))

        def ask(i):
            return catalogue_of(recall(prompts[i % len(prompts)].astype(np.int32)).numpy())

        for i in range(3):
            assert ask(i) == 2, "the asset serves"
        answers, replacements = replace_under_load(ask, files, watched, args)
    check_answers(answers, replacements)
    about = {"items": args.items, "clients": args.clients, "width": args.width}
    return about | figures(answers, replacements)


def run(model, shape, args):
    """`measure` in a process of its own, whose memory no other section has grown.

    Args:
      model: weights of `shape`.
      args: the flags of bench.py; the first of several clients and widths, the most items.
    """
    flags = {
        "shape": shape,
        "items": max(args.sizes),
        "replacements": args.replacements,
        "seconds": args.seconds,
        "clients": args.clients[0],
        "width": args.widths[0],
        "prompt_tokens": args.prompt_tokens,
        "threads": args.threads,
        "seed": args.seed,
        "folder": args.output,
    }
    command = [sys.executable, __file__, str(model)]
    command += [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="weights of the decoder")
    parser.add_argument("--shape", choices=workload.SHAPES, default="0.5b", help="of the decoder")
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--replacements", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="from one to the next")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--width", type=int, default=5, help="of the beam")
    parser.add_argument("--prompt_tokens", type=int, default=150)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are CPUs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the files go; default: a temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    print(json.dumps(measure(parse_args())))
