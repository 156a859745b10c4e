"""Answers as a task: those that one pass finds are those that are written, and ranks share an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bedplate.data.image_refs import ImageRef
from bedplate.data.question_loader import QuestionEvalLoader, prompt_ids
from bedplate.data.questions import Asked, Question
from bedplate.data.tokenizer import end_of_text_id, train_tokenizer, vocabulary_size
from bedplate.models.gpt import GPTConfig
from bedplate.models.reader import Reader, ReaderConfig
from bedplate.models.vit import VisionConfig
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.tasks.answer import Answer, Answered, score
from bedplate.tasks.pixels import normalize

TOKENIZER = train_tokenizer(["what colour is it? red blue"] * 3, 280)
HALVES = [0.5] * 3


class Store:
    """Noise in place of decoded pictures."""

    usable = np.arange(5)

    def __len__(self) -> int:
        return 5

    def pixels(self, index: Any) -> Any:
        return np.stack([np.random.default_rng(i).integers(256, size=(3, 16, 16), dtype=np.uint8) for i in index])


def reader() -> Reader:
    vision = VisionConfig((16, 16), 8, TrunkConfig(16, 1, 2, 2, 8, 32, **PRESETS["vit"]), stem="conv")
    language = GPTConfig.from_preset(
        "qwen3",
        vocab_size=vocabulary_size(TOKENIZER),
        max_position_embeddings=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    module, generator = Reader(ReaderConfig(vision, language)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    module.tie_weights()
    return module.eval()


def greedy(module: Reader, pixels: Tensor, question: str) -> str:
    """What is written, the likeliest token each time."""
    seen = normalize(pixels[None], HALVES, HALVES)
    options: dict[str, Any] = {"max_new_tokens": 3, "temperature": 0.0, "stop_ids": {end_of_text_id(TOKENIZER)}}
    rows = module.generate(module.seen(seen), [prompt_ids(TOKENIZER, question)], **options)
    return TOKENIZER.decode(rows[0]).strip()


@pytest.fixture(scope="module")
def asked() -> Asked:
    """Questions, some of whose learnt answers are what the network writes."""
    module, store, questions = reader(), Store(), []
    for number in range(5):
        pixels = torch.from_numpy(store.pixels([number]))[0]
        texts = ["what colour is it?", "red?", ""][: 1 + number % 3]
        own = [greedy(module, pixels, text) for text in texts]
        truths = [text if n % 2 else "blue" for n, text in enumerate(own)]
        questions.append(
            tuple(Question(t, (a or "x",), "caption" if not t else "k") for t, a in zip(texts, truths, strict=True))
        )
    return Asked([ImageRef(f"{n}.png", f"{n}.png") for n in range(5)], questions, {})


def batches(asked: Asked, rows: int, rank: int = 0, ranks: int = 1) -> QuestionEvalLoader:
    return QuestionEvalLoader(asked, TOKENIZER, rows, Store(), None, rank, ranks)  # type: ignore[arg-type]


def test_one_pass_finds_what_is_written(asked: Asked) -> None:
    module = reader()
    task = Answer(module, TOKENIZER, asked.questions, HALVES, HALVES, max_new_tokens=3)
    rows = task.answers(batches(asked, 2))
    assert [(row.picture, row.number) for row in rows] == [(p, n) for p in range(5) for n in range(1 + p % 3)]
    for row in rows:
        question = asked.questions[row.picture][row.number]
        text = greedy(module, torch.from_numpy(Store().pixels([row.picture]))[0], question.text)
        assert row.text == text
        assert row.right == (text.lower() in [answer.lower() for answer in question.answers])
    assert len({row.right for row in rows}) == 2, "some are right and some are not, or nothing is tested"


def test_the_loss_is_that_of_training(asked: Asked) -> None:
    task = Answer(reader(), TOKENIZER, asked.questions, HALVES, HALVES, max_new_tokens=3)
    total, count = task.loss(batches(asked, 5).batch(0))["loss"]
    rows = task.answers(batches(asked, 2))
    assert sum(row.tokens for row in rows) == int(count)
    assert sum(row.nats for row in rows) == pytest.approx(float(total.detach()), rel=1e-4)
    metrics = task.evaluate(batches(asked, 2))
    assert metrics["loss"]["value"] == pytest.approx(float(total.detach() / count), rel=1e-4)


def test_ranks_share_the_pictures_and_each_counts_once(asked: Asked) -> None:
    alone = Answer(reader(), TOKENIZER, asked.questions, HALVES, HALVES, max_new_tokens=3)

    def of_two(mine: list[Any]) -> list[Any]:
        others = [alone._of_batch(batch) for batch in batches(asked, 2, 1, 2)]
        return [part for pair in zip(mine, others, strict=True) for part in pair]

    shared = Answer(reader(), TOKENIZER, asked.questions, HALVES, HALVES, max_new_tokens=3, collect=of_two)
    mine = [(row.picture, row.number, row.text) for row in shared.answers(batches(asked, 2, 0, 2))]
    assert mine == [(row.picture, row.number, row.text) for row in alone.answers(batches(asked, 2))]


def test_scores_stand_beside_what_is_right_without_looking() -> None:
    kinds = {"is it red?": "yes_no", "what is it?": "what"}
    truths = [
        ("is it red?", ("yes",)),
        ("is it red?", ("yes",)),
        ("what is it?", ("a dog",)),
        ("what is it?", ("two",)),
    ]
    questions = [(Question(text, answers, kinds[text]),) for text, answers in truths]
    asked = Asked([ImageRef(str(n), str(n)) for n in range(4)], questions, {})
    texts = ["yes", "no", "dog", "2"]  # as the rule of VQA compares them, the last two are right
    rows = [
        Answered(n, 0, text, right, 1.0, 2)
        for n, (text, right) in enumerate(zip(texts, [True, False, True, True], strict=True))
    ]
    found = score(rows[::-1], asked)
    assert found["metrics"]["accuracy"]["value"] == 0.75 and found["metrics"]["loss"]["value"] == 0.5
    assert found["kinds"]["yes_no"]["accuracy"]["value"] == 0.5 and found["kinds"]["what"]["accuracy"]["value"] == 1
    assert found["kinds"]["yes_no"]["question"]["value"] == 1 and found["kinds"]["what"]["question"]["value"] == 0
    assert found["kinds"]["what"]["majority"]["value"] == 0.5 and "captions" not in found
    learnt = Asked(asked.images[:1], [(Question("what is it?", ("dog",)),)], {})
    assert score(rows, asked, learnt)["baselines"]["question"]["accuracy"]["value"] == 0.25


def test_captions_are_scored_as_captions() -> None:
    questions = [
        (Question("", ("a red square", "a square"), "caption"),),
        (Question("", ("a blue circle",), "caption"),),
    ]
    asked = Asked([ImageRef(str(n), str(n)) for n in range(2)], questions, {})
    rows = [Answered(0, 0, "a red square", True, 1.0, 4), Answered(1, 0, "a red circle", False, 1.0, 4)]
    found = score(rows, asked)["captions"]
    assert found["exact_match"]["value"] == 0.5 and {"bleu_4", "cider_d"} <= set(found)
