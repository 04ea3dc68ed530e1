"""CTranslate2's beam search, unconstrained: it has no trie. Converts the workload's checkpoint."""

import ctranslate2
import timing
from ctranslate2.converters import TransformersConverter


def main():
    args = timing.parse(("int8", "float32", "bfloat16"))
    folder = args.workload / f"ctranslate2-{args.dtype}"
    if not folder.exists():
        converter = TransformersConverter(str(args.workload / "checkpoint"))
        converter.convert(str(folder), quantization=args.dtype)
    generator = ctranslate2.Generator(
        str(folder), compute_type=args.dtype, inter_threads=1, intra_threads=args.threads
    )
    prompt = [[f"t{token}" for token in args.prompt.tolist()]]

    def generate(width):
        generator.generate_batch(
            prompt,
            beam_size=width,
            num_hypotheses=width,
            max_length=args.sids.shape[1],
            min_length=args.sids.shape[1],
            include_prompt_in_result=False,
            length_penalty=0,
        )

    timing.answer(timing.over_widths(generate, args), ctranslate2=ctranslate2.__version__)


if __name__ == "__main__":
    main()
