"""Hugging Face `generate` with num_beams and prefix_allowed_tokens_fn, as its users run it."""

import time

import timing
import torch
import transformers


def allowed_tokens(sids, token_ids, prompt_tokens, state):
    """prefix_allowed_tokens_fn of a trie of SIDs; TimeoutError past state["deadline"]."""
    rows = [[int(token_ids[level, c]) for level, c in enumerate(sid)] for sid in sids]
    trie = {}
    for row in rows:
        for depth in range(len(row)):
            trie.setdefault(tuple(row[:depth]), set()).add(row[depth])
    trie = {prefix: sorted(tokens) for prefix, tokens in trie.items()}

    def allowed(_, tokens):
        if time.monotonic() > state["deadline"]:
            raise TimeoutError
        # Beams that generate pads with are not in the trie: any token will do.
        return trie.get(tuple(tokens[prompt_tokens:].tolist()), [0])

    return allowed


def main():
    args = timing.parse(("bfloat16", "float32"))
    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.workload / "checkpoint", dtype=getattr(torch, args.dtype)
    ).eval()
    state = {}
    allowed = allowed_tokens(args.sids, args.token_ids, len(args.prompt), state)
    inputs = torch.from_numpy(args.prompt)[None]

    def generate(width):
        state["deadline"] = time.monotonic() + args.limit_s
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            num_beams=width,
            num_return_sequences=width,
            prefix_allowed_tokens_fn=allowed,
            length_penalty=0.0,
            max_new_tokens=args.sids.shape[1],
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )

    with torch.inference_mode():
        ms = timing.over_widths(generate, args)
    timing.answer(ms, transformers=transformers.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
