"""Classifiers: logits of directories that `transformers` wrote, read by us, and the way back; what is refused."""

from __future__ import annotations

import filecmp
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import bedplate
from bedplate.data.examples import encode_rows
from bedplate.data.tokenizer import load_tokenizer
from bedplate.errors import InputError
from bedplate.hub.directory import load_module, save_directory
from bedplate.hub.model import Model
from bedplate.models.classifier import Classifier, Pooling
from bedplate.models.gpt import GPTConfig

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

ATOL = 1e-5
V, N, PAD = 96, 24, 0
LABELS = ["bad", "so so", "good"]
LENGTHS = torch.tensor([N, 3, 1, 17])
FAMILIES = ("qwen3", "llama", "gpt2")
POOLINGS: tuple[Pooling, ...] = ("last", "mean")
SIZES = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}


def ours(family: str, pooling: Pooling, is_causal: bool = True) -> Classifier:
    sizes = {**SIZES, "vocab_size": V, "max_position_embeddings": 64}
    base = GPTConfig.from_preset(family, **sizes)
    config = GPTConfig(family, V, 64, base.tie_word_embeddings, base.trunk, is_causal)
    module = Classifier(config, LABELS, pooling).eval()
    randomise(module)
    return module


def their_config(family: str, **options: Any) -> Any:
    values = {"pad_token_id": PAD, "vocab_size": V, "id2label": dict(enumerate(LABELS)), **SIZES, **options}
    if family == "qwen3":
        values |= {"num_key_value_heads": 2, "head_dim": 16}
    return transformers.AutoConfig.for_model(family, **values)


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * 0.15 if parameter.dim() > 1 else 0.7 + 0.3 * noise)


def a_batch() -> tuple[Tensor, Tensor]:
    """(ids without the padding token among those of texts, attention mask)."""
    mask = torch.arange(N) < LENGTHS[:, None]
    ids = torch.randint(1, V, (len(LENGTHS), N), generator=torch.Generator().manual_seed(2))
    return ids * mask + PAD * ~mask, mask


@torch.inference_mode()
def check_same(module: Classifier, model: Any) -> None:
    """The same logits of a padded batch, and of each text alone."""
    ids, mask = a_batch()
    logits = model(ids, attention_mask=mask.long()).logits
    if logits.dim() == 3:  # of each token: their mean over the text
        logits = (logits * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert logits.std() > 0.1, "the logits are too flat to show a difference"
    assert (module(ids, LENGTHS) - logits).abs().max() < ATOL
    alone = torch.cat([module(row[None, :length]) for row, length in zip(ids, LENGTHS.tolist(), strict=True)])
    assert (alone - logits).abs().max() < ATOL


def auto_class(pooling: Pooling) -> Any:
    names = {"last": "AutoModelForSequenceClassification", "mean": "AutoModelForTokenClassification"}
    return getattr(transformers, names[pooling])


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_what_we_wrote_and_so_do_we(
    family: str, pooling: Pooling, is_causal: bool, tmp_path: Path
) -> None:
    module = ours(family, pooling, is_causal)
    save_directory(tmp_path / "first", module)
    model = auto_class(pooling).from_pretrained(tmp_path / "first", attn_implementation="eager").eval()
    check_same(module, model)
    assert [model.config.id2label[i] for i in range(3)] == LABELS

    again = load_module(tmp_path / "first")
    assert isinstance(again, Classifier)
    assert (again.config, again.labels, again.pooling) == (module.config, LABELS, pooling)
    save_directory(tmp_path / "second", again)
    assert all(filecmp.cmp(tmp_path / "second" / f.name, f, shallow=False) for f in (tmp_path / "first").iterdir())


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_we_read_what_transformers_wrote(family: str, pooling: Pooling, is_causal: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if is_causal else {"is_causal": False}
    config = their_config(family, **options, **({"classifier_pooling": "mean"} if pooling == "mean" else {}))
    model = auto_class(pooling).from_config(config, attn_implementation="eager").eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    module = load_module(tmp_path)
    assert isinstance(module, Classifier) and module.labels == LABELS and module.config.is_causal == is_causal
    check_same(module, model)


def test_the_mean_of_what_tokens_spoke_for_is_the_logits_of_the_text() -> None:
    module, ids = ours("qwen3", "mean"), a_batch()[0][:1]
    with torch.inference_mode():
        assert torch.allclose(module.score(module.hidden(ids)).mean(1), module(ids), atol=1e-6)


def test_a_foreign_classifier_predicts_what_it_predicts_there(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    config = their_config("qwen3", vocab_size=tokenizer.get_vocab_size())
    model = transformers.Qwen3ForSequenceClassification(config).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer.save(str(tmp_path / "theirs" / "tokenizer.json"))
    texts = ["The cat sees a dog.", "Her sister", "für immer"]
    found = bedplate.load(tmp_path / "theirs").predict(texts)
    for text, prediction in zip(texts, found, strict=True):
        with torch.inference_mode():
            scores = model(torch.tensor([tokenizer.encode(text).ids])).logits.softmax(1)[0]
        assert list(prediction["scores"]) == LABELS
        assert list(prediction["scores"].values()) == pytest.approx(scores.tolist(), abs=ATOL)
        assert prediction["label"] == LABELS[int(scores.argmax())]
        assert prediction["score"] == prediction["scores"][prediction["label"]]


def test_a_text_is_read_with_what_its_tokenizer_puts_around_it(tiny_model: Path, tmp_path: Path) -> None:
    """Llama's <s>, say; a classifier that was saved before this was so reads texts without."""
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    module = ours("llama", "last")
    model = Model(Classifier(replace(module.config, vocab_size=tokenizer.get_vocab_size()), LABELS), tokenizer)
    randomise(model.module)
    text = "The cat sees a dog."

    def scores(ids: list[int]) -> list[float]:
        return model.module.eval()(torch.tensor([ids])).softmax(1)[0].tolist()

    with torch.inference_mode():
        framed, bare = scores(tokenizer.encode(text).ids), scores(tokenizer.encode(text, add_special_tokens=False).ids)
    assert list(model.predict(text)[0]["scores"].values()) == pytest.approx(framed, abs=ATOL)
    model.tokenizer_config = {"classify": {"sequence_length": 64, "max_tokens": None}}
    assert list(model.predict(text)[0]["scores"].values()) == pytest.approx(bare, abs=ATOL) != framed


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
def test_windows_of_one_and_of_both_sides(is_causal: bool, tmp_path: Path) -> None:
    """A sliding window of `transformers` counts the token itself where it is causal, and does not where it is not."""
    options = {} if is_causal else {"is_causal": False}
    config = their_config("qwen3", use_sliding_window=True, sliding_window=5, max_window_layers=1, **options)
    model = auto_class("last").from_config(config, attn_implementation="eager").eval()
    randomise(model)
    model.save_pretrained(tmp_path / "theirs")
    module = load_module(tmp_path / "theirs")
    assert isinstance(module, Classifier) and module.config.is_causal == is_causal
    check_same(module, model)
    turned = Classifier(replace(module.config, is_causal=not is_causal), LABELS)
    turned.load_state_dict(module.state_dict())
    save_directory(tmp_path / "ours", turned.eval())
    check_same(turned, auto_class("last").from_pretrained(tmp_path / "ours", attn_implementation="eager").eval())


def test_scores_that_are_no_numbers_are_no_answer(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    config = replace(ours("qwen3", "last").config, vocab_size=tokenizer.get_vocab_size())
    module = Classifier(config, LABELS).eval()
    randomise(module)
    module.score.weight.data[1, 3] = torch.nan
    with pytest.raises(InputError, match="scores are no numbers: its weights are damaged"):
        Model(module, tokenizer).predict("The cat")


def test_the_tokenizer_of_a_saved_classifier_pads_as_it_was_trained(tiny_model: Path, tmp_path: Path) -> None:
    """The whole path of a user of `transformers`: strings, their tokenizer's padding, their model."""
    tokenizer = load_tokenizer(tiny_model)
    base = bedplate.load(tiny_model).module
    texts = ["The cat sees a dog.", "Her sister", "A small bird hears my friend today."]
    for pooling in POOLINGS:
        module = Classifier.of(base, LABELS, pooling).eval()
        torch.nn.init.normal_(module.score.weight)
        save_directory(tmp_path / pooling, module, tokenizer)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / pooling)
        model = auto_class(pooling).from_pretrained(tmp_path / pooling).eval()
        batch = theirs(texts, padding=True, return_tensors="pt")
        rows = encode_rows(tokenizer, texts, None, 32)
        assert batch["attention_mask"].sum(1).tolist() == [len(ids) for ids in rows.ids]
        with torch.inference_mode():
            logits = model(**batch).logits
            if pooling == "mean":
                mask = batch["attention_mask"][..., None]
                logits = (logits * mask).sum(1) / mask.sum(1)
        scores = [list(p["scores"].values()) for p in Model(module, tokenizer).predict(texts)]
        assert (torch.tensor(scores) - logits.softmax(1)).abs().max() < ATOL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type='multi_label_classification' is not supported"),
        ({"problem_type": "regression"}, "problem_type='regression' is not supported"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label must number the labels from 0"),
        ({"id2label": {"0": "a"}}, "id2label has 1 label"),
        ({"id2label": {"0": "a", "1": "a", "2": "a (1)"}}, r"id2label has the label 'a \(1\)' twice"),
        ({"id2label": {"0": "a", "1": "b"}}, "'score.weight' has shape"),
        ({"architectures": ["Qwen3ForTokenClassification"]}, "labels tokens, not texts, which is not supported"),
    ],
)
def test_other_classifiers_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_directory(tmp_path / "model", ours("qwen3", "last"))
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message) as caught:
        load_module(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_classifier_writes_no_text_and_says_what_it_does_instead() -> None:
    model = Model(ours("qwen3", "mean"))
    assert model.labels == LABELS
    with pytest.raises(InputError, match=r"a classifier \(of bad, so so, good\) and writes no text; use `predict`"):
        model.generate("The")
    with pytest.raises(InputError, match="writes no text"):
        model.chat([{"role": "user", "content": "Hello"}])
    with pytest.raises(InputError, match="this model has no tokenizer"):
        model.predict("The")


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_classifier_of_the_same_labels_goes_on_where_it_was(pooling: Any) -> None:
    base, ids = ours("qwen3", pooling), torch.tensor([[3, 1, 4, 1, 5]])
    torch.testing.assert_close(Classifier.of(base, LABELS).eval()(ids), base(ids))
    for other in (
        Classifier.of(base, LABELS[::-1]),
        Classifier.of(base, LABELS[:2]),
        Classifier.of(base, LABELS, "mean" if pooling == "last" else "last"),
    ):
        assert (other.eval()(ids) == 0).all()  # says nothing yet


def test_predict_takes_one_text_or_several_and_no_unknown_option(tiny_model: Path) -> None:
    base = bedplate.load(tiny_model)
    model = Model(Classifier.of(base.module, LABELS).eval(), base.tokenizer)
    assert len(model.predict("The cat")) == 1 and len(model.predict(["The cat", "Her"])) == 2
    assert model.predict([]) == []
    assert model.predict("The cat")[0]["scores"] == pytest.approx(dict.fromkeys(LABELS, 1 / 3))  # says nothing yet
    with pytest.raises(InputError, match="temperature is no option of a classifier; it has sequence_length"):
        model.predict("The", temperature=1)
    for length in (0, -1, 33):
        with pytest.raises(InputError, match=f"sequence_length={length}"):
            model.predict("The", sequence_length=length)
