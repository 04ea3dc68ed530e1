"""LoRA: a decoder's matrices stay as they are, low-rank additions are trained. Knows no
vocabulary.
"""

import torch

_MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_lora(decoder, rank, alpha, seed):
    """Adds adapters to every attention and MLP matrix of a decoder, in place. The outputs do not
    change until they are trained.

    Args:
      decoder: a causal LM of Transformers.
      rank: of the additions.
      alpha: they are scaled by alpha / rank.
      seed: of their random halves.
    """
    from peft import LoraConfig, inject_adapter_in_model  # half a second that few runs need

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_MATRICES, lora_dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, decoder)


def merge_into(state, decoder):
    """Turns the entries of adapters in `decoder`'s state dict into ordinary weights.

    Args:
      state: dict name -> tensor; changed in place, not its tensors.
      decoder: what it is the state of; not changed.
    """
    for name, module in decoder.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        base = module.get_base_layer()
        for key in [k for k in state if k.startswith(f"{name}.")]:
            del state[key]
        with torch.no_grad():
            state[f"{name}.weight"] = base.weight + module.get_delta_weight("default")
        if base.bias is not None:
            state[f"{name}.bias"] = base.bias.detach()


def is_adapter(name):
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name
