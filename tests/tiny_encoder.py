"""A text encoder with random weights as a folder, plain or as sentence-transformers lays it out."""

import json
import os

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ("[PAD]", "[UNK]", "[CLS]", "red", "blue", "nail", "polish", "hose")
HIDDEN = 16


def write_encoder(folder, seed=0):
    """A BERT of one layer whose words are WORDS; every text starts with [CLS]."""
    torch.manual_seed(seed)
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", vocab["[CLS]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    return model


def write_sentence_encoder(folder, pooling, normalize=False, dense=None, **settings):
    """The same as a sentence-transformers folder.

    Args:
      folder: where to.
      pooling: content of the Pooling module's config.json.
      normalize: whether there is a Normalize module.
      dense: (weight [out, in], activation class name) of a Dense module, or None.
      settings: content of sentence_bert_config.json.
    """
    model = write_encoder(folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    write_json(folder, "1_Pooling/config.json", pooling)
    if dense is not None:
        from safetensors.torch import save_file

        weight, activation = dense
        name = f"torch.nn.modules.activation.{activation}"
        write_json(folder, "2_Dense/config.json", {"activation_function": name})
        save_file({"linear.weight": weight}, os.path.join(folder, "2_Dense", "model.safetensors"))
        kinds.append(("Dense", "2_Dense"))
    if normalize:
        kinds.append(("Normalize", "3_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    write_json(folder, "modules.json", modules)
    if settings:
        write_json(folder, "sentence_bert_config.json", settings)
    return model


def write_json(folder, name, value):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f)


def hidden_states(model, text):
    """The last hidden states of one text's tokens by Transformers alone: float [T, H]."""
    words = [w if w in WORDS else "[UNK]" for w in text.split()]
    ids = torch.tensor([[WORDS.index(w) for w in ["[CLS]", *words]]])
    with torch.inference_mode():
        return model(ids).last_hidden_state[0]
