from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.models.clip import Clip, ClipConfig, clip_trunk
from bedplate.models.gpt import GPTConfig
from bedplate.models.vit import VisionConfig
from bedplate.tasks.contrast import Contrast, contrastive_nats

HALVES = (0.5,) * 3
VOCABULARY, END = 40, 0


def make(dropout: float = 0.0, bias: bool = False, seed: int = 0) -> Clip:
    trunk = clip_trunk(16, 2, 2, dropout=dropout)
    text = GPTConfig("clip", VOCABULARY, 8, False, trunk)
    module = Clip(ClipConfig(text, VisionConfig((8, 8), 4, trunk), 12, END, has_logit_bias=bias))
    module.init_weights(seed)
    return module


def batch(rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (rows, 6), generator=draw)
    ids[:, -1] = END
    ids[::3, 3:] = END
    pixels = torch.randint(0, 256, (rows, 3, 8, 8), generator=draw).to(torch.uint8)
    group = torch.arange(rows)
    return {"pixels": pixels, "ids": ids, "group": group, "text": torch.arange(rows)} | {
        name: torch.arange(rows) for name in ("index", "row")
    }


def gradients(module: Clip) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def learn(task: Contrast, parts: list[Any]) -> tuple[float, dict[str, Tensor]]:
    task.module.zero_grad(set_to_none=True)
    value = 0.0
    for part in parts:
        total, weight = task.loss(part)["loss"]
        assert weight == len(part["ids"])
        total.backward()
        value += total.item()
    return value, gradients(task.module)


def same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-5 of the greatest element."""
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-5 * max(1, float(grad.abs().max())), msg=name)


def test_the_loss_is_that_of_transformers_clip() -> None:
    """`CLIPModel(..., return_loss=True)` on the same features, its towers being replaced by these."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": VOCABULARY, "eos_token_id": END, "bos_token_id": 1},
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    peer = transformers.CLIPModel(config).eval()
    data, module = batch(6), make()
    with torch.no_grad():
        module.logit_scale.fill_(float(peer.logit_scale))
        pixels = (data["pixels"].float() / 255 - 0.5) / 0.5
        found = peer(input_ids=data["ids"], pixel_values=pixels, return_loss=True)
    images, texts = found.image_embeds, found.text_embeds
    ours = contrastive_nats(module, images, texts, images, texts, torch.eye(6, dtype=torch.bool)).mean()
    torch.testing.assert_close(ours, found.loss, rtol=0, atol=1e-5)


def test_siglip_is_its_formula() -> None:
    images, texts = torch.randn(5, 12), torch.randn(5, 12)
    module = make(bias=True)
    logits = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T * module.logit_scale.exp() + module.logit_bias
    signs = 2 * torch.eye(5) - 1
    expected = -F.logsigmoid(logits * signs).sum() / 5  # arXiv 2303.15343, algorithm 1
    found = contrastive_nats(module, images, texts, images, texts, torch.eye(5, dtype=torch.bool), "siglip").mean()
    torch.testing.assert_close(found, expected)


def test_positives_share_the_probability() -> None:
    module, data = make(), batch(6)
    data["group"] = torch.tensor([0, 1, 0, 2, 3, 4])
    data["text"] = torch.tensor([0, 1, 2, 9, 9, 5])  # two groups have drawn one text
    task = Contrast(module, HALVES, HALVES)
    pixels = (data["pixels"].float() / 255 - 0.5) / 0.5
    logits = module(pixels, data["ids"]).detach().double()
    total = 0.0
    for table in (logits, logits.T):
        for i in range(6):
            others = [j for j in range(6) if data["group"][i] == data["group"][j] or data["text"][i] == data["text"][j]]
            total -= sum(float(table[i].log_softmax(0)[j]) for j in others) / len(others) / 2
    assert task.loss(data)["loss"][0].item() == pytest.approx(total, abs=1e-4)


def test_pictures_of_a_group_are_told_by_each_other() -> None:
    """SupCon, arXiv 2004.11362, equation 2, beside the loss of texts; a picture without a mate adds nothing."""
    module, data = make(), batch(6)
    data["group"] = torch.tensor([0, 1, 0, 0, 2, 1])
    plain = Contrast(module, HALVES, HALVES).loss(data)["loss"][0].item()
    pixels = (data["pixels"].float() / 255 - 0.5) / 0.5
    images = F.normalize(module.image_features(pixels).detach().double(), dim=1)
    logits = images @ images.T * module.logit_scale.exp().item()
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        mates = [j for j in others if data["group"][i] == data["group"][j]]
        total -= sum(float(logits[i, j] - logits[i, others].logsumexp(0)) for j in mates) / max(1, len(mates))
    found = Contrast(module, HALVES, HALVES, image_weight=0.7).loss(data)["loss"][0].item()
    assert found == pytest.approx(plain + 0.7 * total, abs=1e-4)


def noisy(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    assert size == (8, 8)
    return pixels.float() / 255 + 0.1 * torch.randn(pixels.shape)


@pytest.mark.parametrize("rows", [3, 4, 1])
@pytest.mark.parametrize(("objective", "weight"), [("infonce", 0.0), ("infonce", 0.7), ("siglip", 0.7)])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(rows: int, objective: Any, weight: float) -> None:
    module = make(bias=objective == "siglip")
    task = Contrast(module, HALVES, HALVES, augment=noisy, objective=objective, image_weight=weight)
    data = batch(8)
    data["group"] = data["group"] // 2
    torch.manual_seed(5)
    whole = learn(task, [data])
    torch.manual_seed(5)
    parts = task.micro_batches(data, rows)
    assert [len(part["ids"]) for part in parts] == [min(rows, 8 - start) for start in range(0, 8, rows)]
    found = learn(task, parts)
    assert found[0] == pytest.approx(whole[0], rel=1e-6)
    assert found[1].keys() == whole[1].keys() == {name for name, _ in task.module.named_parameters()}
    same_gradients(found[1], whole[1])


def test_dropout_is_the_same_when_a_part_is_computed_again() -> None:
    task = Contrast(make(dropout=0.4).train(), HALVES, HALVES, augment=noisy)
    data = batch(6)
    torch.manual_seed(5)
    found = learn(task, task.micro_batches(data, 2))
    torch.manual_seed(5)
    pixels = (noisy(data["pixels"], (8, 8)) - 0.5) / 0.5
    features = [
        (task.module.image_features(pixels[i : i + 2]), task.module.text_features(data["ids"][i : i + 2]))
        for i in (0, 2, 4)
    ]
    images, texts = (torch.cat(each) for each in zip(*features, strict=True))
    logits = task.module.logits(images, texts)
    truth = torch.arange(6)
    total = (F.cross_entropy(logits, truth, reduction="sum") + F.cross_entropy(logits.T, truth, reduction="sum")) / 2
    task.module.zero_grad(set_to_none=True)
    total.backward()
    assert found[0] == pytest.approx(total.item(), abs=1e-5)
    same_gradients(found[1], gradients(task.module))
    torch.manual_seed(5)
    again = learn(task, [{**part, "random": torch.random.get_rng_state()} for part in task.micro_batches(data, 2)])
    assert (again[1]["visual_projection.weight"] - found[1]["visual_projection.weight"]).abs().max() > 1e-3


def test_held_out_pairs_are_found_and_counted_once() -> None:
    task = Contrast(make(), HALVES, HALVES)
    data = batch(8)
    halves = [{k: v[start : start + 4] for k, v in data.items()} for start in (0, 4)]
    once, twice = task.evaluate(halves), task.evaluate([*halves, halves[1]])
    assert once == twice and set(once) == set(Contrast.metrics)
    assert once["loss"]["n"] == 8 and once["image_to_text_r1"]["n"] == 8
    truth = torch.arange(8)
    pixels = (data["pixels"].float() / 255 - 0.5) / 0.5
    logits = task.module(pixels, data["ids"])
    both = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
    assert once["loss"]["value"] == pytest.approx(both.item(), abs=1e-5)
    assert once["image_to_text_r1"]["value"] == float(np.mean(logits.argmax(1).numpy() == truth.numpy()))
    assert once["text_to_image_r1"]["value"] == float(np.mean(logits.argmax(0).numpy() == truth.numpy()))
    assert task.module.training
