"""Muon: against torch's own, and what it leaves to AdamW."""

import pytest
import torch
from torch import nn

from cotgen_lite.generate.showo import Showo, ShowoConfig
from cotgen_lite.muon import Muon, orthogonalised, weight_matrices


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 12), nn.Linear(12, 40), nn.LayerNorm(40), nn.Linear(40, 12), nn.Linear(12, 12))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16), (1, 5)])
def test_singular_values_become_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    straight = orthogonalised(matrix)
    values = torch.linalg.svdvals(straight)
    assert straight.shape == shape
    assert values.min() > 0.65 and values.max() < 1.25
    assert torch.nn.functional.cosine_similarity(straight.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # in which torch's would round
    ours, theirs = small_network(), small_network()
    muon = Muon(ours, 0.02, 3e-3, weight_decay=0.1)
    matrices = [layer.weight for layer in theirs if isinstance(layer, nn.Linear)]
    rest = [weight for weight in theirs.parameters() if not any(weight is matrix for matrix in matrices)]
    reference = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(rest, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.98))
    before = [weight.detach().clone() for weight in ours.parameters()]
    for step in range(3):
        ids = torch.arange(7).roll(step)
        for network, optimizers in ((ours, [muon]), (theirs, [reference, adamw])):
            network(ids).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for one, other, old in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        moved = (other - old).norm()
        assert (one - other).norm() < 1e-4 * moved, "a step differs from torch's"
        assert moved > 0


def test_embeddings_norms_biases_and_a_tied_head_are_no_matrices() -> None:
    config = {"text_vocab_size": 9, "codebook_size": 8, "num_image_tokens": 4, "max_text_length": 6, "bos_token_id": 0}
    config |= {"eos_token_id": 0, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    for tied in (True, False):
        model = Showo(ShowoConfig(**config, intermediate_size=32, tie_word_embeddings=tied))
        names = {id(weight): name for name, weight in model.named_parameters()}
        found = {names[id(weight)].split(".")[-2] for weight in weight_matrices(model)}
        assert found == {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
        assert len(weight_matrices(model)) == 12


def test_a_frozen_weight_is_left_alone() -> None:
    network = small_network()
    network[1].weight.requires_grad_(False)
    muon = Muon(network, 0.02, 3e-3)
    assert all(weight is not network[1].weight for group in muon.param_groups for weight in group["params"])


def test_a_saved_state_goes_on_as_if_never_stopped() -> None:
    networks = [small_network() for _ in range(2)]
    muons = [Muon(network, 0.02, 3e-3) for network in networks]

    def learn(which: int, steps: range) -> None:
        for step in steps:
            networks[which](torch.arange(7).roll(step)).square().mean().backward()
            muons[which].step()
            muons[which].zero_grad()

    learn(0, range(4))
    learn(1, range(2))
    fresh = small_network()
    fresh.load_state_dict(networks[1].state_dict())
    again = Muon(fresh, 0.02, 3e-3)
    again.load_state_dict(muons[1].state_dict())
    networks[1], muons[1] = fresh, again
    learn(1, range(2, 4))
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)
