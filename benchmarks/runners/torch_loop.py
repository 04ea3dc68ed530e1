"""A strong constrained beam search in plain torch, the best its eager kernels give.

One-row prefill, its keys and values expanded to the beams; the LM head over the level's SID rows
only; the trie as a dense child table, so the mask is one look-up; keys and values reordered by
index.
"""

import numpy as np
import timing
import torch
import transformers


class Trie:
    """child[level]: int64 [nodes, C], the node reached by a code, -1 where there is none."""

    def __init__(self, sids, codes):
        self.child = []
        nodes = np.zeros(len(sids), np.int64)
        for level in range(sids.shape[1]):
            keys, inverse = np.unique(nodes * codes + sids[:, level], return_inverse=True)
            table = np.full((int(nodes.max()) + 1, codes), -1, np.int64)
            table[keys // codes, keys % codes] = np.arange(len(keys))
            self.child.append(torch.from_numpy(table))
            nodes = inverse


class Search:
    """Beam search over a trie with one decoder; scores as normalize="level"."""

    def __init__(self, model, trie, token_ids):
        self.body = model.model
        self.trie, self.token_ids = trie, torch.from_numpy(token_ids)
        head = model.get_output_embeddings().weight
        self.heads = [head[ids].contiguous() for ids in self.token_ids]

    def __call__(self, prompt, width):
        """Best SIDs int64 [<= W, L] and their scores [<= W]."""
        cache = transformers.DynamicCache(config=self.body.config)
        out = self.body(input_ids=prompt, past_key_values=cache, use_cache=True)
        hidden = out.last_hidden_state[:, -1]
        node, score = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
        prefix = torch.empty(1, 0, dtype=torch.int64)
        for level, head in enumerate(self.heads):
            scores = torch.log_softmax((hidden @ head.T).float(), -1) + score[:, None]
            child = self.trie.child[level][node]
            scores = scores.masked_fill_(child < 0, -torch.inf).flatten()
            legal = int((child >= 0).sum())
            score, best = scores.topk(min(width, legal))
            parent, code = best // head.shape[0], best % head.shape[0]
            node = child.flatten()[best]
            prefix = torch.cat([prefix[parent], code[:, None]], 1)
            if level + 1 == len(self.heads):
                return prefix, score
            cache.batch_select_indices(parent)  # the first time it expands the one row
            tokens = self.token_ids[level][code][:, None]
            out = self.body(input_ids=tokens, past_key_values=cache, use_cache=True)
            hidden = out.last_hidden_state[:, -1]


def main():
    args = timing.parse(("bfloat16", "float32"))
    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.workload / "checkpoint", dtype=getattr(torch, args.dtype)
    ).eval()
    search = Search(model, Trie(args.sids, args.token_ids.shape[1]), args.token_ids)
    prompt = torch.from_numpy(args.prompt)[None]
    with torch.inference_mode():
        ms = timing.over_widths(lambda width: search(prompt, width), args)
    timing.answer(ms, transformers=transformers.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
