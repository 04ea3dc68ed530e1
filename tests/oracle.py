"""The recall graph's answer without TensorFlow: the bindings, and a merge in Python."""

import numpy as np

from genrecall import kernels, trtllm_bridge


class Oracle:
    """Answers users one by one, from a tiny_model's files and an export's weights."""

    def __init__(self, tiny, weights):
        self.index = kernels.RecallIndex.load(str(tiny.index))
        self.prompt = kernels.Prompt.load(str(tiny.checkpoint / "prompt.gguf"))
        self.engine = trtllm_bridge.Engine(str(weights), num_threads=1)

    def prompts(self, users):
        """tokens int32 [B, P], length [B], stable_prefix [B]."""
        features = {name: list(users[name]) for name, _ in self.prompt.features}
        behaviors = [users[f"behavior_{x}"] for x in ("item", "action", "domain", "time", "length")]
        return self.prompt.assemble(self.index, *behaviors, users["request_time"], features)

    def answer(self, users, *, k, beam_width, quotas=(-1, -1)):
        """Per user: list of (item, score, mask), generative branch first, then popular."""
        tokens, length, _ = self.prompts(users)
        excluded = [
            row[:n] for row, n in zip(users["exclude_item"], users["exclude_length"], strict=True)
        ]
        beams = self.engine.decode(
            tokens, length, self.index, beam_width=beam_width, exclude=excluded
        )
        answers = []
        for b, exclude in enumerate(excluded):
            sids, score = beams["sids"][b], beams["score"][b]
            items, scores, _ = self.index.expand(sids, score, k, exclude=exclude)
            popular = self.index.popular(k, exclude=exclude)
            branches = [list(zip(items, scores, strict=True)), list(zip(*popular, strict=True))]
            answers.append(merge(branches, quotas, k))
        return answers


def merge(branches, quotas, k):
    """Quotas in branch order, then filled up in branch order; every proposer's bit set."""
    mask = {}
    for bit, branch in enumerate(branches):
        for item, _ in branch:
            mask[int(item)] = mask.get(int(item), 0) | 1 << bit
    placed = {}
    for limit in (quotas, (-1,) * len(branches)):
        for branch, quota in zip(branches, limit, strict=True):
            count = 0
            for item, score in branch:
                if len(placed) == k or count == quota:
                    break
                if int(item) not in placed:
                    placed[int(item)] = float(score)
                    count += 1
    return [(item, np.float32(score), mask[item]) for item, score in placed.items()]
