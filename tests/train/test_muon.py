"""Muon: PyTorch's own step by step, and orthogonal in fp32 too."""

import pytest
import torch
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.recipe.schema import OptimizerRecipe
from bedplate.train.muon import Muon, orthogonalize
from bedplate.train.optim import finish_gradients, load_state_tensors, make_optimizers, state_tensors

SHAPES = [(8, 8), (16, 4), (4, 16), (8, 8), (6, 10)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    for param, value in zip(params, matrices(seed), strict=True):
        param.grad = value.detach().clone()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_pytorchs_muon_step_by_step(weight_decay: float) -> None:
    ours, theirs = matrices(), matrices()
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": weight_decay}
    optimizers = Muon(ours, **options, dtype=torch.bfloat16), torch.optim.Muon(theirs, **options)
    for step in range(1, 6):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for optimizer in optimizers:
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=0.02 * 0.02, rtol=0)  # bf16 rounds updates of 0.02 to about 1 %


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_singular_values_become_about_1_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    spread = torch.linspace(1, 5, u.shape[1])
    result = orthogonalize(((u * spread) @ v)[None])[0]
    inside = u.mT @ result @ v.mT  # diagonal where the polar factor's vectors are kept
    assert (inside.diagonal() > 0.5).all() and (inside.diagonal() < 1.5).all()
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-4
    torch.testing.assert_close(result, (u * inside.diagonal()) @ v, atol=1e-4, rtol=0)


def test_a_batch_equals_its_matrices_one_by_one() -> None:
    batch = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(batch), torch.cat([orthogonalize(m[None]) for m in batch]))


def test_a_zero_gradient_does_no_harm() -> None:
    assert orthogonalize(torch.zeros(1, 4, 4)).isfinite().all()


def test_a_filter_moves_as_the_matrix_of_its_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    filters = [nn.Parameter(torch.randn(6, 2, 3, 3, generator=generator)) for _ in range(2)]
    flat = [nn.Parameter(p.detach().flatten(1).clone()) for p in filters]
    optimizers = [Muon(params, lr=0.1, dtype=torch.float32) for params in (filters, flat)]
    for _ in range(2):
        for p, q in zip(filters, flat, strict=True):
            gradient = torch.randn(p.shape, generator=generator)
            # of convolutions that read channels last
            p.grad, q.grad = gradient.contiguous(memory_format=torch.channels_last), gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(filters, flat, strict=True):
        torch.testing.assert_close(p.flatten(1), q)


def test_of_a_stem_muon_moves_the_filters_and_not_the_embedding() -> None:
    trunk = TrunkConfig(16, 1, 2, 2, 8, 32, **PRESETS["vit"])
    for stem in ("patch", "conv", "residual"):
        module = VisionModel(VisionConfig((8, 8), 4, trunk, stem=stem))
        _, muon = make_optimizers(module, OptimizerRecipe(), torch.float32)
        moved = {id(p) for group in muon.param_groups for p in group["params"]}
        for name, parameter in module.named_parameters():
            is_filter = name.startswith("embed.layers") and parameter.dim() == 4
            assert (id(parameter) in moved) == (is_filter or ("blocks" in name and parameter.dim() == 2)), name


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def gpt(preset: str, tied: bool) -> nn.Module:
    from bedplate.models.gpt import GPT, GPTConfig

    config = GPTConfig.from_preset(
        preset,
        vocab_size=20,
        max_position_embeddings=8,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return GPT(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_has_one_optimizer_and_muon_the_matrices_of_blocks(preset: str, tied: bool) -> None:
    module = gpt(preset, tied)
    adamw, muon = make_optimizers(module, OptimizerRecipe(), torch.float32)
    of = {id(p): o for o in (adamw, muon) for group in o.param_groups for p in group["params"]}
    assert of.keys() == {id(p) for p in module.parameters()}
    assert sum(len(group["params"]) for o in (adamw, muon) for group in o.param_groups) == len(of)
    for name, parameter in module.named_parameters():
        assert (of[id(parameter)] is muon) == ("blocks" in name and parameter.dim() == 2), name
    for group in adamw.param_groups:
        assert all((p.dim() >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_a_checkpoint_of_the_other_rule_is_refused_by_name() -> None:
    """As of versions in which AdamW moved what Muon moves now."""
    module = nn.Sequential()
    module.add_module("blocks", nn.Linear(3, 3, bias=False))
    before, after = (make_optimizers(module, OptimizerRecipe(name=name), torch.float32) for name in ("adamw", "muon"))
    module.get_parameter("blocks.weight").grad = torch.ones(3, 3)
    for optimizer in before:
        optimizer.step()
    with pytest.raises(InputError, match=r"moved blocks\.weight by another optimizer; finish this run with"):
        load_state_tensors(after, module, state_tensors(before, module))


def test_adamw_alone_covers_everything() -> None:
    module = gpt("qwen3", True)
    (adamw,) = make_optimizers(module, OptimizerRecipe(name="adamw"), torch.float32)
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(list(module.parameters()))


@pytest.mark.parametrize(("clip", "after"), [(None, 4.0), (10.0, 4.0), (1.0, 1.0)])
def test_gradients_are_divided_then_clipped(clip: float | None, after: float) -> None:
    params: list[Tensor] = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]
    for param in params:
        param.grad = torch.full_like(param, 4.0)  # a norm of 8 in all
    assert finish_gradients(params, torch.tensor(2), clip).item() == pytest.approx(4.0)
    norm = torch.cat([p.grad for p in params if p.grad is not None]).norm().item()
    assert norm == pytest.approx(after, rel=1e-4)
