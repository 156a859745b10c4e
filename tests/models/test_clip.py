"""CLIP: parity with `transformers`, texts of different length, free shapes, what its loss can learn from."""

from dataclasses import replace

import pytest
import torch

from bedplate.errors import InputError
from bedplate.models.clip import MAX_SCALE, Clip, ClipConfig
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.vit import VisionConfig, ViT
from bedplate.nn.config import TrunkConfig

SMALL = ClipConfig.standard(
    {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    vocab_size=40,
    max_position_embeddings=12,
    image_size=16,
    patch_size=8,
    projection_dim=8,
    eos_token_id=39,
)
TRUNK = TrunkConfig(16, 2, 2, 1, 8, 32)
TEXT = GPTConfig("qwen3", 40, 32, True, TRUNK)


def made(config: ClipConfig, seed: int = 0) -> Clip:
    module = Clip(config)
    module.init_weights(seed)
    return module.eval()


def free(**options: object) -> Clip:
    """Towers of other shapes: Qwen3's text read both ways, a convolutional stem and means."""
    torch.manual_seed(1)
    text, vision = GPT(TEXT), ViT(VisionConfig((16, 16), 8, TRUNK, stem="conv", pooling="mean"), ["a", "b"])
    text.init_weights(1)
    vision.init_weights(2)
    for module in (text, vision):
        for p in module.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return Clip.of(text, vision, 8, eos_token_id=39, text_pooling="mean", **options).eval()


def ids(*rows: list[int], length: int = 8, pad: int = 39) -> torch.Tensor:
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


@pytest.mark.parametrize("module", [made(SMALL), free()], ids=["standard", "free"])
def test_a_text_means_the_same_whatever_follows_its_first_end_token(module: Clip) -> None:
    texts = [[5, 6, 39], [7, 8, 9, 10, 11, 39]]
    alone = torch.cat([module.text_features(torch.tensor([text])) for text in texts])
    for pad in (39, 0):
        torch.testing.assert_close(module.text_features(ids(*texts, pad=pad)), alone, atol=1e-5, rtol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-2


def test_a_text_without_an_end_token_ends_with_its_last() -> None:
    assert made(SMALL).ends(torch.tensor([[3, 39, 39], [3, 4, 5], [39, 4, 5]])).tolist() == [1, 2, 0]


def test_the_first_checkpoints_end_a_text_at_its_highest_token() -> None:
    module = made(replace(SMALL, eos_token_id=2))
    assert module.ends(torch.tensor([[3, 2, 38, 0, 0], [38, 5, 2, 2, 2]])).tolist() == [2, 0]
    qwen = Clip(replace(free().config, eos_token_id=2))  # whose vocabulary may well end texts with token 2
    assert qwen.ends(torch.tensor([[3, 2, 38, 0, 0]])).tolist() == [1]


def test_logits_are_scaled_cosines_of_every_picture_with_every_text() -> None:
    module, pixels, texts = made(SMALL), torch.randn(3, 3, 16, 16), ids([5, 39], [6, 7, 39])
    images, words = module.image_features(pixels), module.text_features(texts)
    cosines = torch.cosine_similarity(images[:, None], words[None], dim=2)
    torch.testing.assert_close(module(pixels, texts), cosines / 0.07, atol=1e-5, rtol=1e-5)
    siglip = Clip(replace(SMALL, has_logit_bias=True)).eval()
    siglip.load_state_dict(module.state_dict() | {"logit_scale": torch.tensor(0.0), "logit_bias": torch.tensor(-3.0)})
    torch.testing.assert_close(siglip(pixels, texts), cosines - 3, atol=1e-5, rtol=1e-5)


def test_the_scale_is_at_most_a_hundred_and_can_come_back() -> None:
    module = made(SMALL)
    with torch.no_grad():
        module.logit_scale.fill_(MAX_SCALE + 1)
    scale = module.scale()
    scale.backward()
    assert scale.item() == pytest.approx(100) and module.logit_scale.grad is not None
    assert module.logit_scale.grad.item() == pytest.approx(100)


@pytest.mark.parametrize("config", [SMALL, free().config], ids=["standard", "free"])
def test_fresh_towers_tell_pictures_and_texts_apart(config: ClipConfig) -> None:
    """A contrastive loss has no gradient where all pictures, or all texts, are alike."""
    module = made(config, seed=3)
    logits = module(torch.randn(4, 3, 16, 16), ids([1, 2, 39], [3, 2, 39], [4, 2, 39], [5, 2, 39]))
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    loss.backward()
    for name in ("text.embed.weight", "vision.embed.projection.weight", "logit_scale"):
        gradient = module.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 1e-4, name
    other = made(config, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_a_clip_of_trained_towers_has_their_weights_and_reads_both_ways() -> None:
    module = free()
    assert not module.config.text.is_causal and not module.config.is_standard
    first, last = ids([5, 6, 7, 39]), ids([5, 6, 8, 39])
    states = [module.text.hidden(row)[0, 0] for row in (first, last)]
    assert (states[0] - states[1]).abs().max() > 1e-4  # the first token sees the third
    text = GPT(TEXT)
    copy = Clip.of(text, module.vision, 8, eos_token_id=39)
    assert copy.config.text.is_causal and torch.equal(copy.text.embed.weight, text.embed.weight)
    assert torch.equal(copy.vision.cls_token, module.vision.cls_token)
    with torch.no_grad():
        text.embed.weight.zero_()
    assert copy.text.embed.weight.abs().max() > 0  # a copy, not the same memory


def test_what_transformers_knows() -> None:
    text, vision = SMALL.text, SMALL.vision
    assert SMALL.is_standard
    assert replace(SMALL, text=replace(text, trunk=replace(text.trunk, activation="gelu", norm_eps=1e-6))).is_standard
    for other in (
        replace(SMALL, has_logit_bias=True),
        replace(SMALL, text_pooling="mean"),
        replace(SMALL, text=replace(text, is_causal=False)),
        replace(SMALL, text=replace(text, trunk=replace(text.trunk, qk_norm=True))),
        replace(SMALL, vision=replace(vision, pre_norm=False)),
        replace(SMALL, vision=replace(vision, patch_bias=True)),
        replace(SMALL, vision=replace(vision, pooling="mean")),
        replace(SMALL, vision=replace(vision, image_size=(16, 24))),
        replace(SMALL, vision=replace(vision, trunk=replace(vision.trunk, head_dim=8))),
    ):
        assert not other.is_standard


def test_an_end_token_out_of_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="eos_token_id=40 is no token"):
        replace(SMALL, eos_token_id=40)
