"""Scores of continuations against what the logits of whole texts say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.errors import InputError
from bedplate.hub.model import Model, load
from bedplate.measure.branches import Request, Score, causal_scores
from bedplate.measure.likelihood import Scorer

RandomModel = Callable[..., Model]
token = st.integers(0, 5)  # few, so that sequences often begin alike
request_ = st.builds(Request, st.lists(token, min_size=1, max_size=6), st.lists(token, min_size=1, max_size=4))


def by_hand(logits: Tensor, context: list[int], target: list[int]) -> Score:
    """From logits `(N, V)` of each target token."""
    picked = logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
    return Score(float(picked.sum()), logits.argmax(-1).tolist() == target, len(target))


def read_alone(model: Model, request: Request) -> Score:
    ids = torch.tensor([request.context + request.target[:-1]])
    with torch.no_grad():
        return by_hand(model.module(ids)[0, len(request.context) - 1 :], request.context, request.target)


def assert_same(ours: list[Score], theirs: list[Score]) -> None:
    assert [(s.greedy, s.tokens) for s in ours] == [(s.greedy, s.tokens) for s in theirs]
    assert [s.log_likelihood for s in ours] == pytest.approx([s.log_likelihood for s in theirs], abs=2e-4)


@pytest.mark.parametrize("options", [{}, {"preset": "gpt2"}, {"preset": "llama", "windows": (3, None)}], ids=str)
@settings(max_examples=30)
@given(groups=st.lists(st.lists(request_, max_size=4), max_size=5), tokens=st.sampled_from([8, 64, 1000]))
def test_sequences_that_begin_alike_score_as_if_each_were_read_alone(
    random_model: RandomModel, options: dict[str, Any], groups: list[list[Request]], tokens: int
) -> None:
    model = random_model(**options)
    module = model.need_language_model()
    with torch.inference_mode():
        ours = causal_scores(module, groups, tokens)
    assert_same(ours, [read_alone(model, request) for group in groups for request in group])


def test_a_shared_beginning_is_read_once(random_model: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = random_model(), list[torch.Size]()
    module = model.need_language_model()
    hidden = module.hidden
    monkeypatch.setattr(module, "hidden", lambda ids, **options: sizes.append(ids.shape) or hidden(ids, **options))
    question = list(range(3, 40))
    Scorer(model).score([[Request(question, [answer]) for answer in (1, 2, 3)]])
    assert sizes == [(1, 37)]


def test_a_pair_is_tokenised_as_one_text(random_model: RandomModel) -> None:
    scorer = Scorer(random_model())
    for context, continuation in (("the cat", " sees"), ("the cat ", "sees"), ("the", "n it is")):
        request = scorer.encode(context, continuation)
        assert request.context + request.target == scorer.ids(context + continuation)
    assert scorer.encode("the cat ", "sees") == scorer.encode("the cat", " sees")
    assert scorer.encode("", "the cat") == Request([scorer.start], scorer.ids("the cat"))


def test_a_context_that_is_too_long_is_cut_on_the_left(random_model: RandomModel) -> None:
    model = random_model()
    scorer, ids = Scorer(model), list(range(10, 100))
    request = Request(ids[:80], ids[80:])
    assert scorer.too_long(request) and not scorer.too_long(Request(ids[:55], ids[55:65]))
    assert_same(scorer.score([[request]])[0], [read_alone(model, Request(ids[25:80], ids[80:]))])
    with pytest.raises(InputError, match="90 tokens, which do not fit into the model's context of 64"):
        scorer.score([[Request([1], ids)]])


def masked_by_hand(read: Callable[[Tensor], Tensor], before: list[int], target: list[int], after: list[int]) -> Score:
    """`read`: logits `(N, V)` of the prediction at each place of one text."""
    rows = []
    for i in range(len(target)):
        ids = [*before, *target[:i], MASK, *target[i + 1 :], *after]
        with torch.no_grad():
            rows.append(read(torch.tensor([ids]))[len(before) + i])
    return by_hand(torch.stack(rows), before, target)


MASK = 3


def test_masked_tokens_are_predicted_at_the_place_before(random_model: RandomModel) -> None:
    model = random_model()
    module, scorer = model.need_language_model(), Scorer(model, "masked")
    assert model.tokenizer is not None and model.tokenizer.token_to_id("<|mask|>") == MASK

    def read(ids: Tensor) -> Tensor:
        logits = module.head(module.hidden(ids, is_causal=False))[0]
        return torch.cat((logits[:1], logits[:-1]))  # the prediction of place i stands at i - 1

    pairs = [("the cat", " sees a dog"), ("", "a dog"), ("who", " likes her")]
    requests = [scorer.encode(*pair) for pair in pairs]
    end = model.special.eos[0]
    by_mask = [masked_by_hand(read, request.context, request.target, [end]) for request in requests]
    assert_same([scores[0] for scores in scorer.score([[request] for request in requests])], by_mask)

    both = Scorer(model, "both").score([requests])[0]
    by_order = [read_alone(model, request) for request in requests]
    assert_same(both, [one + other for one, other in zip(by_order, by_mask, strict=True)])
    assert both[0].log_likelihood == pytest.approx(by_order[0].log_likelihood + by_mask[0].log_likelihood, abs=1e-4)


def test_a_masked_model_predicts_at_the_mask_itself_between_its_own_markers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "the", "cat", "sees", "a", "dog"]
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=10, initializer_range=1.0, **sizes)
    torch.manual_seed(0)
    module = transformers.BertForMaskedLM(config).eval()
    module.save_pretrained(tmp_path)
    model = load(tmp_path)
    scorer = Scorer(model)
    assert scorer.scoring == "masked"
    requests = [scorer.encode("", "the cat sees"), scorer.encode("the cat", " sees a dog")]
    assert requests == [Request([], [5, 6, 7]), Request([5, 6], [7, 8, 9])]
    copies = [
        ([1, 3, 6, 7, 2], [1, 5, 3, 7, 2], [1, 5, 6, 3, 2]),
        ([1, 5, 6, 3, 8, 9, 2], [1, 5, 6, 7, 3, 9, 2], [1, 5, 6, 7, 8, 3, 2]),
    ]
    for request, masked, score in zip(requests, copies, scorer.score([requests])[0], strict=True):
        with torch.no_grad():
            logits = module(torch.tensor(masked)).logits
        first = 1 + len(request.context)
        assert_same([score], [by_hand(logits[range(3), range(first, first + 3)], [], request.target)])
    for scoring in ("causal", "both"):
        with pytest.raises(InputError, match="needs a causal model"):
            Scorer(model, scoring)  # type: ignore[arg-type]


def test_a_model_without_a_mask_token_is_told_so(random_model: RandomModel) -> None:
    model = random_model()
    assert model.tokenizer is not None
    spec = model.tokenizer.to_str().replace("<|mask|>", "<|other|>")
    without = Model(model.module, Tokenizer.from_str(spec), special=model.special)
    assert Scorer(without).scoring == "causal"
    with pytest.raises(InputError, match="the tokenizer has no mask token"):
        Scorer(without, "masked")
    with pytest.raises(InputError, match="not one of causal, masked, both"):
        Scorer(model, "maskde")  # type: ignore[arg-type]
