"""Muon against the singular value decomposition; which parameter is trained by what."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from genrecall.training.tuning.loop_options import LoopOptions
from genrecall.training.tuning.muon import Muon, orthogonalised
from genrecall.training.tuning.optimizer import hidden_matrices, make_optimizer


def decoder(tied=True):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return Qwen2ForCausalLM(config)


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 9), (8, 8), (16, 40)])
def test_singular_values_come_near_one_and_singular_vectors_stay(rows, columns):
    matrix = torch.from_numpy(np.random.default_rng(rows).standard_normal((rows, columns))).float()
    out = orthogonalised(matrix[None])[0]
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    within = u.T @ out @ vt.T  # diagonal where the singular vectors are the same
    large = s > 0.1 * s[0]
    values = within.diagonal()[large]
    assert ((values > 0.6) & (values < 1.3)).all(), values
    off_diagonal = within - torch.diag(within.diagonal())
    assert off_diagonal.abs().max() < 1e-3


def test_each_of_a_stack_as_if_alone_and_zero_stays_zero():
    stack = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(1))
    stack[1] = 0
    out = orthogonalised(stack)
    assert not out[1].any()
    for i in range(3):
        torch.testing.assert_close(out[i], orthogonalised(stack[i : i + 1])[0])


@pytest.mark.parametrize("shape", [(4, 10), (10, 4)])
def test_a_step_has_the_documented_size_and_decay(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    p = nn.Parameter(start.clone())
    p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    wide = p.grad if shape[0] <= shape[1] else p.grad.T
    # Momentum starts at zero: of the first gradient only the size changes, which does not count.
    expected = orthogonalised(wide[None])[0]
    expected = expected if shape[0] <= shape[1] else expected.T
    Muon([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), start * 0.95 - 0.1 * 0.2 * 10**0.5 * expected)


def test_a_matrix_without_gradient_stays():
    still, moved = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    moved.grad = torch.ones(2, 3)
    Muon([still, moved], lr=0.1, weight_decay=0.1).step()
    assert (still == 1).all() and (moved != 1).all()


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"a parameter of shape \(3,\): expected a matrix"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_no_hidden_matrices(tied):
    model = decoder(tied)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    names = {id(p): n for n, p in model.named_parameters()}
    hidden = {names[id(p)] for p in hidden_matrices(model)}
    every = {n for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
    assert hidden == every - {"model.layers.0.mlp.up_proj.weight"}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_trained_once_and_norms_are_not_decayed(name):
    model = decoder()
    optimizer = make_optimizer(model, LoopOptions(optimizer=name, weight_decay=0.3))
    trained = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())
    assert len(optimizer.parts) == (2 if name == "muon" else 1)
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.3 if p.ndim > 1 else 0.0)


def steps(model, optimizer, first, last):
    for i in range(first, last):
        tokens = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(i))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_stored_state_goes_on_to_the_same_bits():
    options = LoopOptions(optimizer="muon")
    whole, resumed = decoder(), decoder()
    optimizer = make_optimizer(whole, options)
    steps(whole, optimizer, 0, 3)
    resumed.load_state_dict(whole.state_dict())
    again = make_optimizer(resumed, options)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(whole, optimizer, 3, 6)
    steps(resumed, again, 3, 6)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(p.grad is None for p in whole.parameters())
