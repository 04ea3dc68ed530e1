"""The decoder body that is trained against Transformers' own, forward and backward; its pieces
against their formulas.
"""

import json

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from genrecall.training.prompting import packing
from genrecall.training.tuning import checkpoint, decoder_body, lora
from genrecall.training.tuning.fused_ops import Heads, RmsNorm, SwiGlu

VOCABULARY = 50


pytestmark = pytest.mark.usefixtures("one_thread")


def decoder(architecture, kv_heads, hidden=32):
    torch.manual_seed(0)
    kinds = {"Qwen2": (Qwen2Config, Qwen2ForCausalLM), "Qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config, model = kinds[architecture]
    made = model(
        config(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            head_dim=8,
            initializer_range=0.1,
        )
    )
    for p in made.parameters():  # norms and biases that are not all alike
        if p.ndim == 1:
            torch.nn.init.normal_(p, 1.0, 0.3)
    return made


def check_against_transformers(model, tokens, given=None, position=None, visible=None):
    want = model.model(input_ids=tokens, use_cache=False, **(given or {})).last_hidden_state
    got = decoder_body.hidden_states(model, tokens, position, visible)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    weight = torch.randn_like(want)
    trained = [p for p in model.model.parameters() if p.requires_grad]
    wanted, gotten = (torch.autograd.grad((y * weight).sum(), trained) for y in (want, got))
    largest = max(float(g.abs().max()) for g in wanted)
    for a, b in zip(gotten, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6 * largest, rtol=1e-3)


# One token; short rows; rows too long for the batched products.
@pytest.mark.parametrize("batch, length", [(1, 1), (3, 40), (2, 100)])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3"])
def test_the_body_is_the_one_of_transformers(architecture, kv_heads, batch, length):
    tokens = torch.randint(0, VOCABULARY, (batch, length))
    check_against_transformers(decoder(architecture, kv_heads), tokens)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_packed_branches_see_what_they_should(kv_heads):
    """Prompts of 5 tokens with two branches of 3 each, anchored at 5 and at 2."""
    own = torch.tensor([[0] * 5 + [5] * 3 + [8] * 3] * 2)
    anchor = torch.tensor([[0] * 5 + [5] * 3 + [2] * 3] * 2)
    position, visible = packing.layout(own, anchor)
    tokens = torch.randint(0, VOCABULARY, own.shape)
    given = {"position_ids": position, "attention_mask": visible}
    check_against_transformers(decoder("Qwen2", kv_heads), tokens, given, position, visible)


def test_adapters_are_computed_too():
    model = decoder("Qwen2", 2)
    lora.add_lora(model, 2, 4.0, 0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if lora.is_adapter(name):
                p.normal_(0, 0.1)
    check_against_transformers(model, torch.randint(0, VOCABULARY, (2, 9)))


def test_dropout_keeps_the_mean_and_drops_its_share():
    torch.manual_seed(0)
    mask = decoder_body.dropout_mask((301, 333), 0.2)
    assert mask.shape == (301, 333) and len(mask.unique()) == 2
    assert float((mask == 0).float().mean()) == pytest.approx(0.2, abs=0.005)
    assert float(mask.max()) == pytest.approx(1.25, abs=1e-4)
    columns = mask.mean(0)  # no place is dropped more often than another
    assert float(columns.std()) == pytest.approx(0.5 / 301**0.5, rel=0.15)


def test_dropout_is_a_function_of_the_seed():
    model, tokens = decoder("Qwen2", 4), torch.randint(0, VOCABULARY, (2, 9))

    def run(seed):
        torch.manual_seed(seed)
        return decoder_body.hidden_states(model, tokens, dropout=0.5)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_what_neither_the_body_nor_the_engine_computes_is_refused_at_loading(tmp_path):
    model = decoder("Qwen2", 4)
    for key, value, message in [
        ("hidden_act", "gelu", "hidden_act = 'gelu'"),
        ("use_sliding_window", True, "use_sliding_window = True"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "rope_type = 'yarn'"),
    ]:
        config = model.config.to_dict() | {"architectures": ["Qwen2ForCausalLM"], key: value}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"^{tmp_path}: .*{message}"):
            checkpoint.load_decoder(str(tmp_path))


# --- pieces, in double precision ------------------------------------------------------------------


def test_rms_norm_against_its_formula():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    want = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(RmsNorm.apply(x, 1e-3), want)
    assert torch.autograd.gradcheck(lambda y: RmsNorm.apply(y, 1e-3), x)


def test_swiglu_against_its_formula():
    x = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(SwiGlu.apply(x), torch.nn.functional.silu(x[..., :4]) * x[..., 4:])
    assert torch.autograd.gradcheck(SwiGlu.apply, x)


@pytest.mark.parametrize("rows", [1, 2])
def test_heads_against_their_formula(rows):
    x = torch.randn(2, 3, 20, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(rows, 3, 2, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle)[:, :, None]  # complex rotation, as an oracle
    heads = x.detach().unflatten(-1, (5, 4))
    turned = torch.complex(heads[..., :2], heads[..., 2:]) * turn
    want = torch.cat([turned.real, turned.imag], -1)
    want[:, :, 3:] = heads[:, :, 3:]
    got = Heads.apply(x, angle.cos(), angle.sin(), 4, 3)
    torch.testing.assert_close(got, want.transpose(1, 2))
    assert torch.autograd.gradcheck(lambda y: Heads.apply(y, angle.cos(), angle.sin(), 4, 3), x)
