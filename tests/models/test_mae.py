"""MAE beside that of `transformers`, and by its own promises: what is hidden stays hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bedplate.errors import InputError
from bedplate.hub.config_vision import vision_config_from_hf, vision_config_to_hf
from bedplate.hub.weights_vision import vision_names, vision_tensor_from_hf, vision_tensors_to_hf
from bedplate.models.mae import MAE, MAEConfig
from bedplate.models.vit import VisionConfig
from bedplate.nn.config import TrunkConfig
from bedplate.nn.embed import patchify, sincos_positions, unpatchify
from bedplate.nn.presets import PRESETS

ATOL = 1e-5
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 16,
    "patch_size": 4,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed": {"norm_pix_loss": True},
    "grey-half": {"norm_pix_loss": True, "num_channels": 1, "mask_ratio": 0.5},
    "no-qkv-bias": {"qkv_bias": False, "layer_norm_eps": 1e-3, "hidden_act": "relu"},
}


def make(stem: Any = "patch", size: tuple[int, int] = (16, 24), **options: Any) -> MAE:
    trunk, decoder = (TrunkConfig(d, 2, 4, 4, d // 4, 2 * d, **PRESETS["vit"]) for d in (32, 16))
    return MAE(MAEConfig(VisionConfig(size, 4, trunk, 3, stem), decoder, **options))


@torch.no_grad()
def randomised(module: Any) -> Any:
    """In evaluation, and with weights that hide nothing: norms and biases are random too, and the weights large."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        is_gain = "norm" in name and name.endswith("weight")
        parameter.copy_(float(is_gain) + 0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def batch(module: MAE, count: int = 3) -> tuple[Tensor, Tensor]:
    """Pixels, and the noise that orders their patches."""
    generator, c = torch.Generator().manual_seed(2), module.config.encoder
    pixels = torch.randn(count, c.num_channels, *c.image_size, generator=generator)
    return pixels, torch.rand(count, c.grid[0] * c.grid[1], generator=generator)


def check_same(module: MAE, model: Any, what: str) -> None:
    """The same loss, and the same values painted, which stand in another order in each patch."""
    pixels, noise = batch(module)
    with torch.inference_mode():
        out, ours = model(pixels, noise=noise), module(pixels, noise)
        total, weight = module.loss(pixels, noise)
    ours = ours.unflatten(2, (pixels.shape[1], -1)).transpose(2, 3).flatten(2)
    assert out.logits.std() > 1000 * ATOL
    worst = (ours - out.logits).abs().max().item(), abs((total / weight - out.loss).item())
    print(f"parity {what}: logits {worst[0]:.1e}, loss {worst[1]:.1e} of {out.loss:.3f}")
    assert max(worst) < ATOL and weight == len(pixels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_is_that_of_transformers(variant: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = randomised(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES | VARIANTS[variant])))
    c = vision_config_from_hf(model.config.to_dict())
    assert isinstance(c, MAEConfig)
    module, state = MAE(c).eval(), model.state_dict()
    names = vision_names(c, state)
    module.load_state_dict(
        {name: vision_tensor_from_hf(c, name, lambda source: state[names[source]]) for name in module.state_dict()}
    )
    check_same(module, model, f"{variant} read")

    (tmp_path / "config.json").write_text(json.dumps(vision_config_to_hf(c)))
    save_file(vision_tensors_to_hf(module), tmp_path / "model.safetensors", {"format": "pt"})
    again, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    check_same(module, again.eval(), f"{variant} written")


def test_fresh_positions_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES))
    model.decoder.initialize_weights(16)  # which its constructor undoes
    module = make(size=(16, 16))
    module.init_weights(0)
    torch.testing.assert_close(module.decoder_positions.data, model.decoder.decoder_pos_embed.data)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@torch.inference_mode()
def test_loss_is_of_hidden_patches_alone(norm_pix_loss: bool) -> None:
    module = randomised(make(norm_pix_loss=norm_pix_loss))
    pixels, noise = batch(module)
    painted, errors = module(pixels, noise), []
    for image, values, row in zip(pixels, painted, noise, strict=True):
        of_image = []
        for n in row.argsort()[6:].tolist():  # 6 of 24 are kept
            top, left = 4 * (n // 6), 4 * (n % 6)
            true = image[:, top : top + 4, left : left + 4].flatten()
            if norm_pix_loss:
                true = (true - true.mean()) / (true.var() + 1e-6).sqrt()
            of_image.append((values[n] - true).square().mean())
        errors.append(torch.stack(of_image).mean())
    total, weight = module.loss(pixels, noise)
    torch.testing.assert_close(total, torch.stack(errors).sum())
    assert weight == 3


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
@torch.inference_mode()
def test_what_is_hidden_is_not_seen(stem: Any) -> None:
    module = randomised(make(stem))
    pixels, noise = batch(module)
    masks = module.masks(pixels, noise)
    patches = patchify(pixels, 4)
    changed = patches.scatter(1, masks.hidden[..., None].expand(-1, -1, 48), 5.0)
    assert not torch.equal(changed, patches)
    painted = module(pixels, noise)
    torch.testing.assert_close(module(unpatchify(changed, (4, 6), 4), noise), painted)
    seen = patches.scatter(1, masks.kept[..., None].expand(-1, -1, 48), 5.0)
    assert (module(unpatchify(seen, (4, 6), 4), noise) - painted).abs().max() > 0.01


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@torch.inference_mode()
def test_reconstruction(norm_pix_loss: bool) -> None:
    module = randomised(make(norm_pix_loss=norm_pix_loss))
    pixels, noise = batch(module)
    images, painted = module.reconstruct(pixels, noise), module(pixels, noise)
    patches = {name: patchify(image, 4) for name, image in images.items()}
    true = patchify(pixels, 4)
    assert torch.equal(images["original"], pixels)
    rank = noise.argsort(1).argsort(1)
    assert torch.equal(patches["masked"][rank < 6], true[rank < 6]) and (patches["masked"][rank >= 6] == 0).all()
    if norm_pix_loss:
        painted = painted * (true.var(2, keepdim=True) + 1e-6).sqrt() + true.mean(2, keepdim=True)
    torch.testing.assert_close(patches["reconstructed"][rank >= 6], painted[rank >= 6])
    assert torch.equal(patches["reconstructed"][rank < 6], true[rank < 6])


def test_masks_come_from_the_default_generator() -> None:
    module = randomised(make())
    pixels, _ = batch(module)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return module.masks(pixels).kept

    assert torch.equal(draw(5), draw(5)) and not torch.equal(draw(5), draw(6))
    counts = torch.bincount(torch.cat([draw(seed) for seed in range(200)]).flatten(), minlength=24)
    assert counts.sum() == 200 * 3 * 6 and counts.min() > 100 and counts.max() < 200  # 150 is the mean


def test_fresh_weights() -> None:
    """A pure function of the seed; a patch begins as its mean, and positions stay."""
    module, same, other = make(), make(), make()
    for m, seed in ((module, 3), (same, 3), (other, 4)):
        m.init_weights(seed)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), same.parameters(), strict=True))
    assert not torch.equal(module.mask_token, other.mask_token)
    assert torch.equal(module.encoder.positions, sincos_positions((4, 6), 32))
    pixels, noise = batch(module)
    total, weight = module.loss(pixels, noise)
    assert (total / weight).item() == pytest.approx(47 / 48, abs=1e-3)  # the mean square of values of variance 1
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.positions", "decoder_positions"}


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
def test_every_trained_weight_learns(stem: Any) -> None:
    module = randomised(make(stem))
    module.loss(*batch(module))[0].backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
def test_learns_a_few_images_by_heart(stem: Any) -> None:
    module = make(stem, size=(16, 16), norm_pix_loss=True)
    module.init_weights(0)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = [torch.sin(a * rows + b * columns + torch.arange(3.0)[:, None, None]) for a, b in ((0.5, 0.2), (0.1, 0.9))]
    pixels = torch.stack(waves)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    for step in range(300):
        total, weight = module.loss(pixels, noise)
        if step == 0:
            before = (total / weight).item()
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
    with torch.no_grad():
        total, weight = module.loss(pixels, noise)
    print(f"{stem}: {before:.3f} to {total / weight:.5f}")
    assert before > 0.9 and total / weight < 0.02


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
def test_flops_are_three_times_those_of_the_forward_pass(stem: Any) -> None:
    module = make(stem)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 16, 24))
    unpainted = 2 * module.config.kept * module.pred.weight.numel()  # of what is seen, in training
    assert module.flops_per_image() == 3 * (counter.get_total_flops() - unpainted)


def test_refuses_impossible_shapes() -> None:
    with pytest.raises(InputError, match=r"mask_ratio=0.99 keeps 0 of 24 patches"):
        make(mask_ratio=0.99)
    with pytest.raises(InputError, match=r"mask_ratio=0 keeps 24 of 24 patches"):
        make(mask_ratio=0)
    c, odd = make().config, TrunkConfig(18, 1, 1, 1, 18, 32, **PRESETS["vit"])
    with pytest.raises(InputError, match="hidden_size=18 is not a multiple of 4"):
        MAEConfig(c.encoder, odd)
    assert make(size=(16, 16)).config.is_standard and not make().config.is_standard
