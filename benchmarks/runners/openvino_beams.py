"""OpenVINO GenAI's beam search, unconstrained. Exports the checkpoint by optimum-intel."""

import numpy as np
import openvino
import openvino_genai
import timing


def export(checkpoint, folder, dtype):
    """The checkpoint as OpenVINO IR in `folder`, weights as bf16 or int8; nothing is downloaded."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    quantization = OVWeightQuantizationConfig(bits=8) if dtype == "int8" else None
    model = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=quantization
    )
    model.save_pretrained(folder)


def main():
    args = timing.parse(("bfloat16", "int8", "float32"))
    folder = args.workload / ("openvino-int8" if args.dtype == "int8" else "openvino")
    if not folder.exists():
        export(args.workload / "checkpoint", folder, args.dtype)
    precision = "f32" if args.dtype == "float32" else "bf16"
    pipeline = openvino_genai.LLMPipeline(
        str(folder),
        "CPU",
        INFERENCE_NUM_THREADS=args.threads,
        INFERENCE_PRECISION_HINT=precision,
    )
    prompt = openvino.Tensor(np.ascontiguousarray(args.prompt[None], np.int64))

    def generate(width):
        config = openvino_genai.GenerationConfig()
        config.num_beams = config.num_return_sequences = width
        config.num_beam_groups = 1
        config.max_new_tokens = config.min_new_tokens = args.sids.shape[1]
        config.length_penalty = 0.0
        config.ignore_eos = True
        pipeline.generate(prompt, config)

    timing.answer(timing.over_widths(generate, args), openvino_genai=openvino_genai.__version__)


if __name__ == "__main__":
    main()
