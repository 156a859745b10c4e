"""A reader: several texts of one picture are as those alone, cached as uncached, and padding changes nothing."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bedplate.errors import InputError
from bedplate.models.gpt import GPTConfig
from bedplate.models.reader import Reader, ReaderConfig
from bedplate.models.vit import VisionConfig, ViT
from bedplate.nn.config import TrunkConfig
from bedplate.nn.heads import IGNORE
from bedplate.nn.presets import PRESETS

STOP = 0
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"preset": "qwen3", "num_key_value_heads": 2},
    "llama": {"preset": "llama", "tie_word_embeddings": False},
    "gpt2": {"preset": "gpt2"},
}


def vision_config(**options: Any) -> VisionConfig:
    trunk = TrunkConfig(16, 2, 2, 2, 8, 32, **PRESETS["vit"])
    return VisionConfig((16, 16), 8, trunk, **options)


def make_reader(family: str = "qwen3", connector: Any = "linear", places: bool = True) -> Reader:
    """A tiny reader whose weights hide nothing."""
    language = GPTConfig.from_preset(
        vocab_size=29,
        max_position_embeddings=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        **FAMILIES[family],
    )
    reader = Reader(ReaderConfig(vision_config(stem="conv"), language, connector, places)).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in reader.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_gain = parameter.dim() == 1 and name.endswith("weight")
        scale = 0.5 if "embed.weight" in name or "positions" in name else parameter.shape[-1] ** -0.5
        parameter.data = 1 + 0.3 * noise if is_gain else noise * scale
    reader.tie_weights()
    return reader


@pytest.fixture(params=FAMILIES, scope="module")
def reader(request: pytest.FixtureRequest) -> Reader:
    return make_reader(request.param)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def packed(texts: list[list[list[int]]]) -> dict[str, Tensor]:
    """Rows of several texts each, as the loader of questions gives them."""
    longest = max(sum(map(len, row)) for row in texts)
    batch = {key: torch.zeros(len(texts), longest, dtype=torch.long) for key in ("ids", "doc", "pos")}
    batch["valid"] = torch.zeros(len(texts), longest, dtype=torch.bool)
    for number, row in enumerate(texts):
        start = 0
        for doc, text in enumerate(row, 1):
            place = number, slice(start, start + len(text))
            batch["ids"][place], batch["doc"][place] = torch.tensor(text), doc
            batch["pos"][place], batch["valid"][place] = torch.arange(len(text)), True
            start += len(text)
        batch["doc"][number, start:] = 1  # whatever padding says
    return batch


TEXTS = [[[3, 4, 5], [6, 7], [8, 9, 10, 11]], [[12, 13]]]


def test_texts_of_one_picture_are_as_each_alone(reader: Reader) -> None:
    pixels, batch = pictures(2), packed(TEXTS)
    together = reader(pixels, **batch)
    for number, row in enumerate(TEXTS):
        start = 0
        for text in row:
            alone = reader(pixels[number : number + 1], torch.tensor([text]))[0]
            torch.testing.assert_close(together[number, start : start + len(text)], alone, atol=1e-5, rtol=0)
            start += len(text)


def test_a_text_sees_its_picture_and_nothing_that_follows(reader: Reader) -> None:
    ids = torch.tensor([[3, 4, 5, 6]])
    logits, other = reader(pictures(1), ids), reader(pictures(1, seed=1), ids)
    assert (logits - other).abs().amax(-1).min() > 1e-3
    changed = reader(pictures(1), torch.tensor([[3, 4, 7, 6]]))
    torch.testing.assert_close(logits[:, :2], changed[:, :2], atol=1e-6, rtol=0)
    assert (logits - changed)[:, 2:].abs().max() > 1e-3


def test_the_patches_of_a_picture_see_each_other() -> None:
    """Were they read from left to right, the last patch alone would not change what the first ones say."""
    reader = make_reader()
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    other = states.clone()
    other[:, -1] += 1
    caches = []
    for each in (states, other):
        reader.look = lambda pixels, each=each: each  # type: ignore[method-assign]
        caches.append(reader.seen(pictures(1)).held(1)[0])
    assert (caches[0] - caches[1])[:, :, 0].abs().max() > 1e-3


def test_the_loss_is_the_mean_over_answers_alone(reader: Reader) -> None:
    pixels, batch = pictures(2), packed(TEXTS)
    targets = torch.full_like(batch["ids"], IGNORE)
    targets[0, 2], targets[0, 4], targets[0, 7], targets[0, 8], targets[1, 1] = 20, 21, 22, STOP, 23
    total, count = reader.loss(pixels, targets=targets, **batch)
    logs = reader(pixels, **batch).log_softmax(-1)
    kept = targets != IGNORE
    wanted = -logs[kept].gather(1, targets[kept][:, None]).sum()
    torch.testing.assert_close(total, wanted, atol=1e-4, rtol=1e-5)
    assert count == 5


def likeliest(reader: Reader, pixels: Tensor, prompt: list[int], steps: int) -> list[int]:
    """Greedy writing without a cache."""
    row: list[int] = []
    while len(row) < steps:
        token = int(reader(pixels[None], torch.tensor([prompt + row]))[0, -1].argmax())
        if token == STOP:
            break
        row.append(token)
    return row


@pytest.mark.parametrize("prompts", [[[3, 4], [5, 6], [7, 8]], [[3], [5, 6, 7, 8], [9, 9]]], ids=["even", "ragged"])
def test_cached_writing_is_uncached_writing(reader: Reader, prompts: list[list[int]]) -> None:
    pixels, options = pictures(3), {"max_new_tokens": 8, "temperature": 0.0, "stop_ids": {STOP}}
    written = reader.generate(reader.seen(pixels), prompts, **options)
    assert written == [likeliest(reader, image, p, 8) for image, p in zip(pixels, prompts, strict=True)]
    slow = reader.language.head.register_forward_hook(lambda *_: None)  # a hooked module is not for the decoder
    assert reader.generate(reader.seen(pixels), prompts, **options) == written
    slow.remove()


def test_beams_find_what_scores_best(reader: Reader) -> None:
    """With as many beams as there are continuations, the search is exhaustive."""
    pixels, prompts = pictures(2), [[3, 4, 5], [6]]
    found = reader.generate(reader.seen(pixels), prompts, max_new_tokens=2, num_beams=29, length_penalty=0.0)
    every = [list(pair) for pair in itertools.product(range(29), repeat=2)]
    for number, text in enumerate(found):
        seen = reader.seen(pixels[number : number + 1]).repeated(len(every), reader.config.picture)
        scores = reader.log_likelihood(seen, [prompts[number]] * len(every), every)
        assert text == every[int(scores.argmax())]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 28), min_size=1, max_size=5), st.integers(1, 4)), min_size=1, max_size=4)
)
def test_log_likelihood_is_that_of_each_row_alone(rows: list[tuple[list[int], int]]) -> None:
    reader = make_reader()
    pixels, prompts = pictures(len(rows)), [prompt for prompt, _ in rows]
    texts = [[5, 6, 7, STOP][:length] for _, length in rows]
    scores = reader.log_likelihood(reader.seen(pixels), prompts, texts)
    for image, prompt, text, score in zip(pixels, prompts, texts, scores, strict=True):
        logs = reader(image[None], torch.tensor([prompt + text]))[0].log_softmax(-1).detach()
        alone = sum(float(logs[len(prompt) - 1 + n, token]) for n, token in enumerate(text))
        assert float(score) == pytest.approx(alone, abs=1e-4)


def test_one_picture_serves_several_prompts() -> None:
    reader, pixels = make_reader(), pictures(2)
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.0}
    counts = torch.tensor([2, 1])
    seen = reader.seen(pixels).repeated(counts, reader.config.picture)
    shared = reader.generate(seen, [[3], [4, 5], [3]], **options)
    alone = reader.generate(reader.seen(pixels[[0, 0, 1]]), [[3], [4, 5], [3]], **options)
    assert shared == alone


def test_the_pictures_cache_is_not_written_to() -> None:
    reader = make_reader()
    seen = reader.seen(pictures(1))
    first = reader.generate(seen, [[3]], max_new_tokens=5, temperature=0.0)
    assert seen.length == reader.config.picture
    assert reader.generate(seen, [[3]], max_new_tokens=5, temperature=0.0) == first


def test_a_prompt_that_does_not_fit_behind_the_picture_is_refused() -> None:
    reader = make_reader()
    room = reader.config.context
    with pytest.raises(InputError, match=f"{room} tokens and the model's context holds {room}"):
        reader.generate(reader.seen(pictures(1)), [[3] * room], max_new_tokens=1)


@pytest.mark.parametrize("connector", ["linear", "mlp"])
def test_a_reader_of_trained_towers_has_their_weights(connector: Any) -> None:
    source = make_reader()
    vision = ViT(vision_config(stem="conv"), ["a", "b"])
    vision.load_state_dict(source.vision.state_dict(), strict=False)
    reader = Reader.of(vision, source.language, connector=connector, image_size=(24, 24))
    assert reader.config.vision.grid == (3, 3) and reader.config.picture == 10
    assert reader.language.head.weight is reader.language.embed.weight
    torch.testing.assert_close(reader.language.embed.weight, source.language.embed.weight)
    torch.testing.assert_close(reader.vision.trunk.norm.weight, source.vision.trunk.norm.weight)
    same = Reader.of(vision, source.language, connector=connector)
    torch.testing.assert_close(same.vision.hidden(pictures(1)), source.vision.hidden(pictures(1)))


def test_a_language_model_that_has_no_room_is_refused() -> None:
    language = make_reader().language.config
    with pytest.raises(InputError, match="a picture is 5 tokens, and the language model's context holds 6"):
        ReaderConfig(vision_config(), replace(language, max_position_embeddings=6))
    bert = GPTConfig.from_preset(
        "bert", vocab_size=29, max_position_embeddings=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(InputError, match=r"language model \(bert\) does not"):
        ReaderConfig(vision_config(), bert)


def test_fresh_weights_follow_from_the_seed() -> None:
    reader = make_reader()
    reader.init_weights(0)
    first = {name: value.clone() for name, value in reader.state_dict().items()}
    reader.init_weights(1)
    assert any(not torch.equal(first[name], value) for name, value in reader.state_dict().items())
    reader.init_weights(0)
    assert all(torch.equal(first[name], value) for name, value in reader.state_dict().items())


def test_places_begin_without_effect_and_tell_left_from_right() -> None:
    old = make_reader(places=False)
    reader = old.with_places()
    ids = torch.tensor([[3, 4, 5]])
    assert reader.config.places and reader.with_places() is reader
    assert torch.equal(reader(pictures(1), ids), old(pictures(1), ids))
    places = reader.connector[-1].weight
    assert places.shape == (5, 16)  # the class token and 2 x 2 patches
    loss, _ = reader.loss(pictures(2), ids.expand(2, -1), torch.tensor([[1, 2, 3]]).expand(2, -1))
    (grad,) = torch.autograd.grad(loss, places)
    assert (grad.norm(dim=1) > 0).all() and not torch.allclose(grad[1], grad[2])
