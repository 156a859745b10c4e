"""A choice between labels without training: what is scored equals what the logits say, and depends on nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

import bedplate
from bedplate.errors import InputError
from bedplate.hub.model import Model
from bedplate.models.bert import Encoder, MaskedLM
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.scoring import Choice, log_likelihoods
from bedplate.tasks.zeroshot import (
    CONTENT_FREE,
    TEMPERATURE,
    Prompt,
    Template,
    choose_examples,
    read_labels,
    similarities,
)

TEXTS = ["the cat sees a dog", "Her sister", "🐈 für", "in 1984"]
LABELS = {"animal": "a small bird", "place": "the house", "time": "today"}
V, LONGEST = 40, 24


def gpt(preset: str) -> GPT:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    module = GPT(GPTConfig.from_preset(preset, vocab_size=V, max_position_embeddings=LONGEST, **sizes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def brute_force(module: GPT, prefix: list[int], continuation: list[int]) -> float:
    """Token by token, each alone behind all before it."""
    total, ids = 0.0, list(prefix)
    for token in continuation:
        with torch.inference_mode():
            total += float(module(torch.tensor([ids]))[0, -1].double().log_softmax(0)[token])
        ids.append(token)
    return total


IDS = st.lists(st.integers(0, V - 1), min_size=1, max_size=6)
CHOICES = st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=5)


@pytest.mark.parametrize("preset", ["qwen3", "gpt2"])
@settings(max_examples=30)
@given(choices=CHOICES, tokens=st.integers(1, 60))
def test_log_likelihoods_are_those_of_each_token_behind_all_before_it(
    preset: str, choices: list[tuple[list[int], list[list[int]]]], tokens: int
) -> None:
    module = gpt(preset)
    found = log_likelihoods(module, [Choice(*choice) for choice in choices], tokens)
    for values, (prefix, continuations) in zip(found, choices, strict=True):
        assert values == pytest.approx([brute_force(module, prefix, ids) for ids in continuations], abs=1e-4)


@pytest.fixture(scope="module")
def short(tiny_model: Path) -> Model:
    """Of 32 tokens of context."""
    return bedplate.load(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    """The same with room for examples: its positions are rotary, so that nothing but the limit changes."""
    wide = bedplate.load(tiny_model)
    wide.module.config = replace(wide.config, max_position_embeddings=256)
    return wide


def prompt(model: Model, **options: Any) -> Prompt:
    if isinstance(template := options.pop("template", None), str):
        options["template"] = Template(template)
    return Prompt(model.module, model.tokenizer, options.pop("labels", LABELS), model.special.bos, **options)


def by_hand(model: Model, text: str, scored: str) -> tuple[float, int]:
    """(log P(scored | text), its tokens), encoded together, where the tokens of `scored` are known to be its own."""
    ids, before = ([model.special.bos, *model.tokenizer.encode(part).ids] for part in (text + scored, text))
    assert ids[: len(before)] == before, "the seam of this example falls between tokens"
    return brute_force(model.module, before, ids[len(before) :]), len(ids) - len(before)


def test_a_label_is_scored_with_the_space_before_it_behind_the_text(model: Model) -> None:
    read = prompt(model, template="{text}\nIt is {label}", calibrate=False)
    found = read.scores(TEXTS)
    assert read.cut == 0
    for row, text in zip(found.tolist(), TEXTS, strict=True):
        pairs = [by_hand(model, f"{text}\nIt is", f" {words}") for words in LABELS.values()]
        assert row == pytest.approx([nats / tokens for nats, tokens in pairs], abs=1e-4)


def test_calibration_divides_by_the_mean_share_behind_texts_without_content(model: Model) -> None:
    """Zhao et al. 2021: p / p_content_free, renormalised."""

    def shares(text: str) -> torch.Tensor:
        return torch.tensor([by_hand(model, f"{text}\nIt is", f" {w}")[0] for w in LABELS.values()]).softmax(0)

    content_free = torch.stack([shares(text) for text in CONTENT_FREE]).mean(0)
    found = prompt(model, template="{text}\nIt is {label}").scores(TEXTS).softmax(1)
    for row, text in zip(found.tolist(), TEXTS, strict=True):
        expected = shares(text) / content_free
        assert row == pytest.approx((expected / expected.sum()).tolist(), abs=1e-5)


def test_with_the_label_first_the_text_is_scored(model: Model) -> None:
    found = prompt(model, template="About {label}:\n{text}").scores(TEXTS[:2])
    for row, text in zip(found.tolist(), TEXTS, strict=False):
        expected = [by_hand(model, f"About {words}:\n", text)[0] for words in LABELS.values()]
        assert row == pytest.approx(expected, abs=1e-3)


def test_a_seam_inside_of_a_token_is_scored_for_all_labels_alike(model: Model) -> None:
    """Without a space a label may merge with what is before it; no label gets tokens that others do not answer for."""
    labels = {"one": "er", "two": "e cat", "three": "x"}
    found = prompt(model, labels=labels, template="{text} th{label}", calibrate=False)
    ids = [model.tokenizer.encode(f"in 1984 th{words}").ids for words in labels.values()]
    shared = next(i for i in range(99) if len({tuple(row[: i + 1]) for row in ids}) > 1)
    expected = []
    for row in ids:
        nats = brute_force(model.module, [model.special.bos, *row[:shared]], row[shared:])
        expected.append(nats / (len(row) - shared))
    assert found.scores(["in 1984"])[0].tolist() == pytest.approx(expected, abs=1e-4)


EXAMPLES = [("the cat", "animal"), ("the sea", "place")]


def test_examples_that_are_cut_are_counted_with_the_texts(model: Model) -> None:
    labels, long = {"animal": "dog", "place": "house"}, "the cat sees a dog near the sea " * 40
    read = prompt(model, labels=labels, template="{text}: {label}", examples=[(long, "animal"), ("the sea", "place")])
    assert read.cut == 1 and len(read._before) < len(long)
    read.scores(["the cat", long])
    assert read.cut == 2


@pytest.mark.parametrize("template", ["{text} is {label}", "{label} is {text}"])
@pytest.mark.parametrize("examples", [(), EXAMPLES], ids=["zero", "few"])
def test_scores_depend_on_the_text_alone_and_not_on_the_order_of_labels(
    model: Model, template: str, examples: Any
) -> None:
    labels = {"animal": "dog", "place": "house", "time": "day"}
    together = prompt(model, labels=labels, template=template, examples=examples).scores(TEXTS)
    turned = dict(reversed(labels.items()))
    for row, text in zip(together, TEXTS, strict=True):
        alone = prompt(model, labels=turned, template=template, examples=examples).scores([text])
        assert row.tolist() == pytest.approx(alone[0].flip(0).tolist(), abs=1e-4)


def test_examples_stand_before_the_text_as_the_template_writes_them(model: Model) -> None:
    labels = {"animal": "dog", "place": "house"}
    options = {"labels": labels, "template": "{text}: {label}", "calibrate": False}
    few = prompt(model, examples=EXAMPLES, **options)
    assert few._before == "the cat: dog\n\nthe sea: house\n\n"
    expected = [by_hand(model, "the cat: dog\n\nthe sea: house\n\nin 1984:", f" {w}") for w in labels.values()]
    assert few.scores(["in 1984"])[0].tolist() == pytest.approx([a / n for a, n in expected], abs=1e-4)


@pytest.mark.parametrize("template", ["{text}\nIt is {label}", "{label}. {text}"])
def test_what_does_not_fit_is_cut_at_the_end_of_the_text_and_counted(short: Model, template: str) -> None:
    read = prompt(short, template=template, labels={"a": "dog", "b": "house"})
    words = "the cat sees a dog near the sea "
    found = read.scores([words * 40, words * 400_000, "the cat"])
    assert read.cut == 2 and found[0].tolist() == pytest.approx(found[1].tolist(), abs=1e-6)  # 13 MB like the short one
    kept = read._fitting(words * 40)
    assert (words * 40).startswith(kept) and 20 < len(kept) < 200
    emoji = read._fitting("🐈" * 100)  # several tokens each: cut between characters
    assert emoji and set(emoji) == {"🐈"}


def test_a_text_may_spell_out_placeholders_and_special_tokens(model: Model) -> None:
    assert Template("{text} is {label}").write("{label} {text}", "x")[0] == "{label} {text} is x"
    assert torch.isfinite(prompt(model).scores(["<|endoftext|>", "{text}{label}"])).all()
    ids = prompt(model)._encode(["<|endoftext|>"])[0][0]
    assert model.special.bos not in ids


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("sports, politics", {"sports": "sports", "politics": "politics"}),
        ("sports,politics,", {"sports": "sports", "politics": "politics"}),
        ("a=good, b=bad", {"a": "good", "b": "bad"}),
        ("a=good, fine; b=bad", {"a": "good, fine", "b": "bad"}),
        (["a, b", "c=d=e"], {"a, b": "a, b", "c": "d=e"}),
        ({"a": "good", "b": "bad"}, {"a": "good", "b": "bad"}),
    ],
)
def test_labels_as_people_give_them(labels: Any, expected: dict[str, str]) -> None:
    assert read_labels(labels) == expected


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ("sports", "only 'sports' is given"),
        ([], "no labels are given; say what to choose between"),
        ("", "no labels are given; say what to choose between"),
        (" ;", "no labels are given"),
        ("=x", "label 1 of 1 is empty"),
        ([1, 2], "label 1: must be a string, not int"),
        (["a", None], "label 2: must be a string, not NoneType"),
        (5, r"labels: must be a string, a list or \{name: words\}, not int"),
        ("a,,b", "label 2 of 3 is empty"),
        ("a=,b", "label 1 of 2 is empty"),
        ("a,b,a", "the label 'a' is there twice"),
        ("a=x,b=x", "the words 'x' are there twice; give each label words of its own"),
    ],
)
def test_labels_that_are_no_choice(labels: Any, part: str) -> None:
    with pytest.raises(InputError, match=part):
        read_labels(labels)


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{text} is", "misses {label}"),
        ("it is {label}", "misses {text}"),
        ("{text}{text}{label}", "has 2 times {text}"),
    ],
)
def test_templates_that_are_none(template: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        Template(template)


def test_examples_are_as_many_of_each_label_nested_and_seeded() -> None:
    texts, labels = [f"text {i}" for i in range(40)], ["a", "b", "c", "a"] * 10
    one, two, three = (choose_examples(texts, labels, ["a", "b", "c"], shots, seed=1) for shots in (1, 2, 3))
    assert one == two[:3] == three[:3] and two == three[:6]
    assert sorted(label for _, label in three) == list("aaabbbccc") and len(set(three)) == 9
    assert all(labels[texts.index(text)] == label for text, label in three)
    assert choose_examples(texts, labels, ["a", "b", "c"], 3, seed=2) != three
    with pytest.raises(InputError, match="shots=11: the examples have 10 of label 'b'"):
        choose_examples(texts, labels, ["a", "b", "c"], 11, seed=1)


def test_what_has_no_room(short: Model) -> None:
    many = [("the cat sees a dog in the garden", "animal")] * 30
    with pytest.raises(
        InputError, match=r"30 examples leave 0 tokens for the text of each in the model's context of 32"
    ):
        prompt(short, examples=many)
    with pytest.raises(InputError, match="leaves no room for a text in the model's context of 32"):
        prompt(short, template="{text}" + " the cat" * 30 + "{label}")


def test_a_model_without_a_first_token_needs_words_before_what_is_scored(model: Model) -> None:
    bare = Prompt(model.module, model.tokenizer, LABELS, None, Template("{label}: {text}"))
    with pytest.raises(InputError, match="nothing stands before what is scored"):
        Prompt(model.module, model.tokenizer, LABELS, None, Template("{text}{label}")).scores(["a"])
    assert torch.isfinite(bare.scores(["a"])).all()


# by vectors


def test_similarities_are_cosines_with_the_mean_of_words_and_examples() -> None:
    vectors = {"x": [1.0, 0.0], "y": [0.0, 1.0], "text": [0.8, 0.6], "like x": [0.6, 0.8], "very x": [1.0, 0.0]}

    def embed(texts: Any) -> torch.Tensor:
        return torch.tensor([vectors[text] for text in texts])

    labels = {"a": "x", "b": "y"}
    assert similarities(embed, ["text"], labels).mul(TEMPERATURE)[0].tolist() == pytest.approx([0.8, 0.6])
    few = similarities(embed, ["text"], labels, [("like x", "a"), ("very x", "a")]).mul(TEMPERATURE)[0].tolist()
    mean = torch.tensor([(1 + 0.6 + 1) / 3, 0.8 / 3])
    assert few == pytest.approx([float(mean @ torch.tensor([0.8, 0.6]) / mean.norm()), 0.6])


@pytest.mark.parametrize("method", ["prompt", "embedding"])
def test_predict_gives_what_a_classifier_gives(model: Model, method: str) -> None:
    found = model.predict(TEXTS, labels=LABELS, method=method)
    for row in found:
        assert list(row["scores"]) == list(LABELS) and sum(row["scores"].values()) == pytest.approx(1)
        assert row["score"] == row["scores"][row["label"]] == max(row["scores"].values())
    json.dumps(found)
    assert model.predict(TEXTS[0], labels=LABELS, method=method)[0]["label"] == found[0]["label"]
    assert model.predict([], labels=LABELS, method=method) == []
    with pytest.raises(InputError, match="text 2: the text is empty"):
        model.predict(["a", " \n"], labels=LABELS, method=method)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"method": "magic"}, "method='magic' is not known; choose one of prompt, embedding"),
        ({"method": "embedding", "template": "{text} {label}"}, "are for method='prompt'"),
        ({"examples": [("a", "Animals")]}, "example 1: label 'Animals' is none of .*did you mean 'animal'"),
        ({"examples": [("a", "zzz")]}, "example 1: label 'zzz' is none of animal, place, time"),
        ({"examples": [("", "time")]}, "example 1: the text is empty"),
        ({"examples": [{"text": "a"}]}, "example 1: must be a pair of text and label"),
        ({"examples": [1]}, "example 1: must be a pair of text and label"),
        ({"examples": ["ab"]}, "example 1: must be a pair of text and label"),
        ({"foo": 1}, "foo is no option of a choice between labels; it has method, template, examples, calibrate"),
        ({"num_beams": 4}, "num_beams is no option of a choice between labels"),
    ],
)
def test_options_that_do_not_fit(model: Model, options: Any, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        model.predict(TEXTS, labels=LABELS, **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_text(model: Model) -> None:
    for call in (model.predict, lambda texts: model.predict(texts, labels=LABELS)):
        with pytest.raises(InputError, match="text 1: must be a string, not int"):
            call([3])
    with pytest.raises(InputError, match="text 1: must be a string, not int"):
        model.predict(3)
    with pytest.raises(InputError, match="prompt 2: must be a string or token ids, not int"):
        model.generate(["a", 3])


def encoder(tokenizer: Tokenizer, head: type[Encoder] = Encoder) -> Model:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GPTConfig.from_preset("bert", vocab_size=300, max_position_embeddings=32, **sizes)
    return Model(head(config).eval(), tokenizer)


@pytest.mark.parametrize("head", [Encoder, MaskedLM])
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"template": "{text} {label}"}, "leave the template out"),
        ({"calibrate": False}, "leave the calibrate out"),
        ({"method": "prompt"}, "leave the method out"),
    ],
)
def test_an_encoder_reads_no_prompt(model: Model, head: type[Encoder], options: Any, part: str) -> None:
    read = encoder(model.tokenizer, head)
    with pytest.raises(InputError, match=rf"this one is an encoder; {part} \(method embedding\)"):
        read.predict(TEXTS, labels=LABELS, **options)
    assert len(read.predict(TEXTS, labels=LABELS)) == len(TEXTS)


@pytest.mark.parametrize("method", ["prompt", "embedding"])
def test_labels_that_a_tokenizer_makes_the_same_are_no_choice(model: Model, method: str) -> None:
    lower = Tokenizer.from_str(model.tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="labels: 'cat' and 'Cat' are the same tokens to this model"):
        replace(model, tokenizer=lower).predict(TEXTS, labels="cat,dog,Cat", method=method)
    assert len(model.predict(TEXTS, labels="cat,dog,Cat", method=method)) == len(TEXTS)


def test_a_classifier_keeps_its_own_labels(tiny_classified: Path) -> None:
    with pytest.raises(InputError, match=r"a classifier with labels of its own \(place, time\); leave labels out"):
        bedplate.load(tiny_classified).predict(TEXTS, labels="place,time")
