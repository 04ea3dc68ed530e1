"""How nearly two engines answer alike: what quantisation costs, measured on real prompts. Knows no
quantisation.
"""

from dataclasses import dataclass

import numpy as np

from genrecall.training.evaluation import ranking

HITS_AT = 10


@dataclass(frozen=True)
class Answers:
    """What one engine answered for n users.

    sids int32 [n, W, L] and score float32 [n, W], best first, -1 and -inf pad; logits float32 [n,
    C], those of the first level's codes; ranks int64 [n], of the users' targets.
    """

    sids: np.ndarray
    score: np.ndarray
    logits: np.ndarray
    ranks: np.ndarray


def answers(engine, maker, split, users, beam_width=50):
    """Decodes the users' prompts and ranks their targets.

    Args:
      engine: trtllm_bridge.Engine.
      maker: samples.SampleMaker.
      split: "valid" or "test": whose targets.
      users: int64 [n], users that have one.
      beam_width: beams of each request.
    """
    ends = maker.lines.visible(split)[users]
    levels = len(maker.prompt.level_sizes)
    sids = np.full((len(users), beam_width, levels), -1, np.int32)
    score = np.full((len(users), beam_width), -np.inf, np.float32)
    first = np.asarray(maker.prompt.token_ids[0])
    logits = np.empty((len(users), len(first)), np.float32)
    ranks = np.empty(len(users), np.int64)
    for row, (user, end) in enumerate(zip(users, ends, strict=True)):
        tokens, length = maker.prompts(np.array([user]), np.array([end]))
        out = engine.decode(tokens, length, maker.index, beam_width=beam_width)
        sids[row], score[row] = out["sids"][0], out["score"][0]
        found = ranking.items_of(maker, out, 0, user, end)
        ranks[row] = ranking.rank_in(*found, maker.lines.items_of(user)[end])
        logits[row] = engine.forward(tokens[0, : length[0]])[-1, first]
    return Answers(sids, score, logits, ranks)


def compare(reference, other):
    """What `other` changes.

    Args:
      reference, other: Answers for the same users.

    Returns:
      dict: users, beam_width, overlap (share of the reference's beams that the other has too, mean
      over users) and overlap_min, top1 (share of users whose best beam is the same), logit_error
      (mean absolute difference of the first level's logits, each row centred, since a shift of all
      changes nothing) and logit_spread (their standard deviation in the reference), score_error
      (mean absolute difference of the scores of beams that both have), hr@10 of both.
    """
    overlaps, errors, top1 = [], [], 0
    for a, b, a_score, b_score in zip(
        reference.sids, other.sids, reference.score, other.score, strict=True
    ):
        known = {tuple(s): x for s, x in zip(a.tolist(), a_score, strict=True) if s[0] >= 0}
        found = {tuple(s): x for s, x in zip(b.tolist(), b_score, strict=True) if s[0] >= 0}
        both = known.keys() & found.keys()
        overlaps.append(len(both) / max(len(known), 1))
        errors += [abs(float(known[s]) - float(found[s])) for s in both]
        top1 += bool(np.array_equal(a[0], b[0]))
    exact, rough = (x - x.mean(axis=1, keepdims=True) for x in (reference.logits, other.logits))
    return {
        "users": len(reference.sids),
        "beam_width": reference.sids.shape[1],
        "overlap": float(np.mean(overlaps)),
        "overlap_min": float(np.min(overlaps)),
        "top1": top1 / len(reference.sids),
        "logit_error": float(np.abs(exact - rough).mean()),
        "logit_spread": float(exact.std()),
        "score_error": float(np.mean(errors)) if errors else float("nan"),
        f"hr@{HITS_AT}": [float((x.ranks <= HITS_AT).mean()) for x in (reference, other)],
    }
