"""Answering: what a picture shows, in words, and questions about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.question_loader import prompt_ids
from bedplate.data.questions import Asked, Question, majority_answers
from bedplate.data.tokenizer import end_of_text_id
from bedplate.metrics.answers import normal_answer
from bedplate.metrics.blind import question_alone
from bedplate.metrics.captions import bleu, cider_d, exact_match
from bedplate.metrics.intervals import ratio_interval
from bedplate.metrics.proportion import proportion
from bedplate.metrics.rouge import rouge
from bedplate.models.reader import Reader, answered
from bedplate.nn.cache import uncompiled
from bedplate.nn.heads import IGNORE
from bedplate.tasks import Batch
from bedplate.tasks.pixels import normalize

TOKENS = 16384  # of pictures and texts whose keys and values are held at one time
OTHER = "other"  # kind of questions that have none
Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Answered:
    """What was written for one question.

    Attributes:
        picture, number: which one it is, of `questions[picture]`.
        text: the likeliest answer, token by token.
        right: whether it is one of those that count as right.
        nats, tokens: negative log-likelihood of the answer that is learnt, and its tokens, the end's included.
    """

    picture: int
    number: int
    text: str
    right: bool
    nats: float
    tokens: int


class Answer:
    """Answers about pictures. Batches are those of `data.question_loader`.

    Args:
        questions: of each picture that is held out, by the number that `index` gives it.
        mean, std: of each channel of values in 0..1, taken out before the network.
        augment: what training shows of a batch; None shows it as it is.
        max_new_tokens: of an answer.
        collect: makes of one rank's results those of all, where ranks share the held-out batches.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {"accuracy": "max", "loss": "min"}
    unit: ClassVar[Literal["tokens", "images"]] = "images"

    def __init__(
        self,
        module: Reader,
        tokenizer: Tokenizer,
        questions: Sequence[Sequence[Question]],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augment: Callable[[Tensor], Tensor] | None = None,
        max_new_tokens: int = 16,
        collect: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        self.module, self.tokenizer, self.questions = module, tokenizer, questions
        self.mean, self.std, self.augment = mean, std, augment
        self.max_new_tokens, self.collect = max_new_tokens, collect

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Nats of the answers' tokens; what is asked is not learnt."""
        pixels = batch["pixels"] if self.augment is None else self.augment(batch["pixels"])
        total, count = self.module.loss(
            normalize(pixels, self.mean, self.std),
            batch["ids"],
            batch["targets"],
            doc=batch["doc"],
            pos=batch["pos"],
            valid=batch["valid"],
        )
        return {"loss": (total, count.float())}

    def evaluate(self, batches: Iterable[Batch]) -> Metrics:
        """Share of questions that are answered right (`accuracy`), and nats a token of the answers (`loss`)."""
        return measured(self.answers(batches))

    @torch.no_grad()
    def answers(self, batches: Iterable[Batch]) -> list[Answered]:
        """The answers to all questions of all ranks' pictures, in the batches' order; a picture that comes twice
        counts once.

        An answer that the network finds the likeliest token by token, given those before, is what it would write: one
        pass over a picture with all its questions tells, and only the others are written.
        """
        module = self.module
        was_training = module.training
        module.eval()
        found = self.collect([self._of_batch(batch) for batch in batches])
        module.train(was_training)
        first: dict[tuple[int, int], Answered] = {}
        for rows in found:
            for row in rows:
                first.setdefault((row.picture, row.number), row)
        return list(first.values())

    def _of_batch(self, batch: Batch) -> list[Answered]:
        module, index = self.module, batch["index"].tolist()
        batch = {name: values.to(module.device) for name, values in batch.items()}
        pixels = normalize(batch["pixels"], self.mean, self.std)
        at, targets = answered(batch["targets"])
        hidden = module.hidden(pixels, batch["ids"], doc=batch["doc"], pos=batch["pos"], valid=batch["valid"], at=at)
        kept = targets != IGNORE
        logits, wanted = module.language.head(hidden[kept]).float(), targets[kept]  # of answers alone
        doc = batch["doc"] if at is None else batch["doc"].gather(1, at)
        # A place for each question of each row.
        places = max(len(self.questions[picture]) for picture in index)
        place = (doc - 1 + places * torch.arange(len(doc), device=doc.device)[:, None])[kept]
        empty = torch.zeros(len(doc) * places, device=doc.device)
        nats = empty.index_add(0, place, F.cross_entropy(logits, wanted, reduction="none")).tolist()
        tokens = empty.index_add(0, place, torch.ones_like(place, dtype=empty.dtype)).tolist()
        misses = empty.index_add(0, place, (logits.argmax(-1) != wanted).to(empty.dtype)).tolist()
        asked = [(row, n) for row, picture in enumerate(index) for n in range(len(self.questions[picture]))]
        missed = [(row, n) for row, n in asked if misses[row * places + n]]
        written = dict(zip(missed, self._write(pixels, index, missed), strict=True))
        rows = []
        for row, number in asked:
            question = self.questions[index[row]][number]
            text, slot = written.get((row, number), question.answers[0].strip()), row * places + number
            right = is_right(text, question.answers)
            rows.append(Answered(index[row], number, text, right, nats[slot], int(tokens[slot])))
        return rows

    def _write(self, pixels: Tensor, index: Sequence[int], asked: Sequence[tuple[int, int]]) -> list[str]:
        """The answers to some questions, each (row of the batch, number of the question)."""
        prompts = [prompt_ids(self.tokenizer, self.questions[index[row]][number].text) for row, number in asked]
        return write(
            self.module,
            self.tokenizer,
            pixels,
            [row for row, _ in asked],
            prompts,
            max_new_tokens=self.max_new_tokens,
        )

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None: the report shows pictures with answers."""
        return []

    def flops(self, batch: Batch) -> int:
        pictures, length = batch["ids"].shape
        return self.module.flops(pictures, length)


@torch.inference_mode()
def write(
    module: Reader,
    tokenizer: Tokenizer,
    pixels: Tensor,
    rows: Sequence[int],
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    **options: Any,
) -> list[str]:
    """The answer behind each prompt; see `written`."""
    found = written(module, tokenizer, pixels, rows, prompts, max_new_tokens=max_new_tokens, **options)
    return [text.strip() for text in tokenizer.decode_batch([ids for ids, _ in found])]


@torch.inference_mode()
def written(
    module: Reader,
    tokenizer: Tokenizer,
    pixels: Tensor,
    rows: Sequence[int],
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    scored: bool = False,
    **options: Any,
) -> list[tuple[list[int], float]]:
    """(tokens, log-probability) of an answer behind each prompt, the likeliest token each time, or as a search finds.

    A picture is read once, however many prompts it has.

    Args:
        pixels: normalised `(B, C, H, W)`.
        rows: of each prompt's picture, in ascending order.
        scored: whether log-probabilities are computed (else 0): in nats, of all tokens, the end's included.
        options: those of `models.beam.generate`.
    """
    end, found = end_of_text_id(tokenizer), list[tuple[list[int], float]]()
    if options.get("num_beams", 1) == 1:
        options.setdefault("temperature", 0.0)
    longest = max(map(len, prompts), default=0)
    row = (module.config.picture + longest + max_new_tokens) * max(1, options.get("num_beams", 1))
    each = max(1, TOKENS // row)
    for start in range(0, len(prompts), each):
        here, part = rows[start : start + each], list(prompts[start : start + each])
        shown, counts = torch.unique_consecutive(torch.tensor(here), return_counts=True)
        with uncompiled():
            pictures = module.seen(pixels[shown.to(pixels.device)])
            seen = pictures.repeated(counts.to(pixels.device), module.config.picture)
            texts = module.generate(seen, part, max_new_tokens=max_new_tokens, stop_ids={end}, **options)
        scores = [0.0] * len(texts)
        if scored:
            limits = [min(max_new_tokens, module.config.context - len(prompt)) for prompt in part]
            ended = [text if len(text) == most else [*text, end] for text, most in zip(texts, limits, strict=True)]
            scores = module.log_likelihood(seen, part, ended).tolist()
        found += zip(texts, scores, strict=True)
    return found


def score(rows: Sequence[Answered], asked: Asked, learnt: Asked | None = None) -> dict[str, Any]:
    """How good answers are, all together and by kind, beside what is right without looking.

    Args:
        rows: answers to all questions of those pictures of `asked` that they speak of.
        learnt: what was trained on, from which the answer to a question alone is known; without it from the other
            pictures, see `metrics.blind`.

    Returns:
        {"metrics": {"accuracy", "loss"}, "baselines": {"majority", "question"}: each {"accuracy"}, "kinds": {name:
        {"accuracy", "majority", "question"}}}: `majority` is the most frequent answer of the kind, `question` the most
        frequent one to the same question. Of captions also "captions": {"exact_match", "bleu_4", "cider_d", and with
        the library `rouge-score` "rouge_l"}.
    """
    rows = sorted(rows, key=lambda row: (row.picture, row.number))
    asked_of = asked.select(sorted({row.picture for row in rows}))
    questions = [asked.questions[row.picture][row.number] for row in rows]
    known = None if learnt is None else [(q.text, q.answers[0]) for each in learnt.questions for q in each]
    blind = {
        "majority": majority_answers(asked_of),
        "question": question_alone(
            [q.text for q in questions], [q.answers[0] for q in questions], [row.picture for row in rows], known
        ),
    }
    right = {"accuracy": np.array([row.right for row in rows])}
    for name, guessed in blind.items():
        right[name] = np.array([is_right(text, q.answers) for text, q in zip(guessed, questions, strict=True)])
    kinds = np.array([q.kind or OTHER for q in questions])
    found = {
        "metrics": measured(rows),
        "baselines": {name: {"accuracy": proportion(right[name])} for name in blind},
        "kinds": {
            kind: {name: proportion(hits[kinds == kind]) for name, hits in right.items()}
            for kind in sorted(set(kinds.tolist()))
        },
    }
    captioned = [(row.text, q.answers) for row, q in zip(rows, questions, strict=True) if not q.text]
    return found | ({"captions": of_captions(*zip(*captioned, strict=True))} if captioned else {})


def measured(rows: Sequence[Answered]) -> Metrics:
    """{"accuracy", "loss"}: the share that is right, and nats a token of the answers."""
    return {
        "accuracy": proportion([row.right for row in rows]),
        "loss": ratio_interval([row.nats for row in rows], [row.tokens for row in rows]),
    }


def of_captions(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Metrics:
    """How near captions are to those that people wrote; see `metrics.captions` and `metrics.rouge`."""
    found = {
        "exact_match": exact_match(texts, references),
        "bleu_4": bleu(texts, references),
        "cider_d": cider_d(texts, references),
    }
    if find_spec("rouge_score"):  # of the extra `eval`
        found["rouge_l"] = rouge(texts, references)["rougeL"]
    return found


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is one of those that are accepted, as `metrics.answers.normal_answer` compares them."""
    return normal_answer(answer) in map(normal_answer, accepted)
