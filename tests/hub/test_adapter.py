"""Adapters on models, in PEFT's form on the disk: parity both ways, exchange, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bedplate
from bedplate.errors import InputError
from bedplate.hub.adapter import fingerprint, put_adapter, save_adapter
from bedplate.hub.directory import load_module, save_directory
from bedplate.hub.model import Model
from bedplate.hub.peft import CONFIG, WEIGHTS
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.recipe.finetune import AdapterRecipe

ATOL = 1e-5
LABELS = ["bad", "so so", "good"]
FAMILIES = ("qwen3", "llama", "gpt2")
IDS = torch.randint(1, 96, (3, 12), generator=torch.Generator().manual_seed(0))
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}


@torch.no_grad()
def randomize(module: nn.Module, seed: int, only: str = "") -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if only in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.15 if parameter.dim() > 1 else 0.7 + 0.3 * noise)


def make_base(directory: Path, family: str = "qwen3", seed: int = 1, **options: Any) -> Path:
    sizes = SIZES | ({} if family == "gpt2" else {"num_key_value_heads": 2}) | options
    module = GPT(GPTConfig.from_preset(family, vocab_size=96, max_position_embeddings=64, **sizes))
    randomize(module, seed)
    save_directory(directory, module)
    return directory


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random language model of each family."""
    folder = tmp_path_factory.mktemp("bases")
    return {family: make_base(folder / family, family) for family in FAMILIES}


def trained(base: Path, labels: Any = None, pooling: Any = "last", seed: int = 2, **settings: Any) -> Model:
    """What fine-tuning makes of a base: an adapter on it, and as a classifier a score."""
    model = bedplate.load(base)
    module: Any = model.module if labels is None else Classifier.of(model.module, labels, pooling)
    put_adapter(module, AdapterRecipe(**{"rank": 4, **settings}), seed)
    randomize(module, seed, ".lora_")
    randomize(module, seed, "score")
    return Model(module.eval())


def save(directory: Path, model: Model, base: Path | str, **settings: Any) -> Path:
    save_adapter(directory, model, AdapterRecipe(**{"rank": 4, **settings}), str(base))
    return directory


@pytest.fixture(scope="module")
def adapters(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of the Qwen3 base: two of language models, one of a classifier; not to be changed."""
    folder, base = tmp_path_factory.mktemp("adapters"), bases["qwen3"]
    made = {"first": trained(base, seed=2), "second": trained(base, seed=3), "classifier": trained(base, LABELS)}
    return {name: save(folder / name, model, base) for name, model in made.items()}


@torch.no_grad()
def logits(model: Model | nn.Module) -> Tensor:
    out: Tensor = (model.module if isinstance(model, Model) else model)(IDS)
    return out


def differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or bool((a - b).abs().max() > 0.01)


# Put on, taken off, exchanged, merged.


def test_an_adapter_comes_off_to_the_bit_and_is_exchanged(bases: dict[str, Path], adapters: dict[str, Path]) -> None:
    model, plain = bedplate.load(bases["qwen3"]), logits(bedplate.load(bases["qwen3"]))
    alone = {name: logits(bedplate.load(bases["qwen3"], adapter=adapters[name])) for name in adapters}
    assert differ(alone["first"], plain) and differ(alone["second"], alone["first"])
    for name in ("first", "second", "classifier", "first"):
        model.load_adapter(adapters[name])
        assert torch.equal(logits(model), alone[name])
        assert model.labels == (LABELS if name == "classifier" else None)
    model.unload_adapter()
    assert torch.equal(logits(model), plain) and model.plain is None and model.labels is None
    model.unload_adapter()
    assert torch.equal(logits(model), plain)


def test_what_was_saved_is_what_is_loaded(bases: dict[str, Path], tmp_path: Path) -> None:
    for family in FAMILIES:
        for labels, pooling in ((None, "last"), (LABELS, "last"), (LABELS, "mean")):
            made = trained(bases[family], labels, pooling)
            loaded = bedplate.load(bases[family], adapter=save(tmp_path / "a", made, bases[family]))
            assert torch.equal(logits(loaded), logits(made)), (family, labels, pooling)
            shutil.rmtree(tmp_path / "a")


def test_a_merged_model_is_saved_whole(bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path) -> None:
    for name in ("first", "classifier"):
        model = bedplate.load(bases["qwen3"], adapter=adapters[name])
        with pytest.raises(InputError, match=r"merge_adapter\(\) or unload_adapter\(\) before saving"):
            model.save(tmp_path / name)
        before = logits(model)
        model.merge_adapter()
        model.merge_adapter()
        assert model.plain is None
        model.save(tmp_path / name)
        torch.testing.assert_close(logits(bedplate.load(tmp_path / name)), before, atol=ATOL, rtol=0)


def test_an_adapter_directory_brings_its_base(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(bedplate.load(bases["qwen3"], adapter=adapters["first"]))
    assert torch.equal(logits(bedplate.load(adapters["first"])), expected)
    shutil.copytree(bases["qwen3"], tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "made", trained(Path("base")), "base")
    assert json.loads((tmp_path / "made" / CONFIG).read_text())["base_model_name_or_path"] == "base"
    assert torch.equal(logits(bedplate.load("made")), expected)  # relative to the current folder
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(logits(bedplate.load("../made")), expected)  # where it was when the adapter was made
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").rename(tmp_path / "made" / "base")
    assert torch.equal(logits(bedplate.load("made")), expected)  # or to the adapter's
    (tmp_path / "made" / "base").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"its base 'base' is not there; load the base itself"):
        bedplate.load("made")
    assert torch.equal(logits(bedplate.load("moved", adapter="made")), expected)


def test_a_base_of_the_hub_is_named_as_peft_names_it(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = save(tmp_path / "made", trained(bases["llama"]), "hf:someone/tiny@v2")
    values = json.loads((made / CONFIG).read_text())
    assert (values["base_model_name_or_path"], values["revision"]) == ("someone/tiny", "v2")
    asked: list[str] = []

    def fetch(source: str) -> Path:
        asked.append(source)
        return bases["llama"]

    monkeypatch.setattr("bedplate.hub.locate._from_hub", fetch)
    bedplate.load(made)
    theirs = load_file(made / WEIGHTS)
    save_file(theirs, made / WEIGHTS)  # as PEFT writes it, without our metadata
    bedplate.load(made)
    assert asked == ["hf:someone/tiny@v2"] * 2


def test_a_language_models_adapter_brings_its_tokenizer_and_template(tiny_model: Path, tmp_path: Path) -> None:
    model = bedplate.load(tiny_model)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    put_adapter(model.module, AdapterRecipe(rank=2), 0)
    special = type(model.special)(0, (0, 1))
    made = Model(model.module, model.tokenizer, "", special, {**model.tokenizer_config, "chat_template": template})
    save(tmp_path / "made", made, tiny_model, rank=2)
    plain = bedplate.load(tiny_model)
    loaded = bedplate.load(tiny_model, adapter=tmp_path / "made")
    assert loaded.tokenizer_config["chat_template"] == template and loaded.special == special
    loaded.unload_adapter()
    assert (loaded.tokenizer_config, loaded.special) == (plain.tokenizer_config, plain.special)


# The base's fingerprint.


def test_a_fingerprint_is_of_the_weights_whatever_their_dtype(
    bases: dict[str, Path], adapters: dict[str, Path]
) -> None:
    base = bases["qwen3"]
    prints = {fingerprint(load_module(base, dtype)) for dtype in ("fp32", "bf16", "fp16")}
    assert len(prints) == 1 and prints == {fingerprint(trained(base, LABELS).module)}
    model = bedplate.load(base, dtype="bf16", adapter=adapters["first"])
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    module = load_module(base)
    with torch.no_grad():
        module.trunk.blocks[1].mlp.down_proj.weight[3, 5] *= -1
    assert fingerprint(module) not in prints
    assert len({fingerprint(load_module(path)) for path in bases.values()}) == 3


def test_another_base_is_refused_by_fingerprint(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    model = bedplate.load(make_base(tmp_path / "other", seed=9))
    before = logits(model)
    for name in adapters:
        with pytest.raises(InputError, match=rf"{name}: the adapter is of another base .*fingerprint \w{{12}}\) than"):
            model.load_adapter(adapters[name])
    assert torch.equal(logits(model), before) and model.plain is None
    worn = bedplate.load(bases["qwen3"], adapter=adapters["first"])
    before = logits(worn)
    with pytest.raises(InputError, match="another base"):
        worn.load_adapter(save(tmp_path / "a", trained(tmp_path / "other"), tmp_path / "other"))
    assert torch.equal(logits(worn), before), "what was on it stays on it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 48}, r"'base_model.model.model.layers.0.*' has shape .* and this model needs"),
        ({"num_hidden_layers": 1}, r"layers.1.* belongs to no linear layer of this model's blocks"),
        ({"family": "gpt2"}, r"layers.0.* belongs to no linear layer"),
    ],
)
def test_without_a_fingerprint_another_base_is_refused_by_shapes(
    adapters: dict[str, Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    made = tmp_path / "made"
    shutil.copytree(adapters["first"], made)
    save_file(load_file(made / WEIGHTS), made / WEIGHTS)
    model = bedplate.load(make_base(tmp_path / "other", **options))
    with pytest.raises(InputError, match=message):
        model.load_adapter(made)


def test_a_language_models_adapter_is_not_for_a_classifier(adapters: dict[str, Path], bases: dict[str, Path]) -> None:
    classifier = Model(Classifier.of(load_module(bases["qwen3"]), LABELS))
    with pytest.raises(InputError, match="is of a language model, and this model is a classifier"):
        classifier.load_adapter(adapters["first"])
    classifier.load_adapter(adapters["classifier"])
    assert torch.equal(logits(classifier), logits(bedplate.load(bases["qwen3"], adapter=adapters["classifier"])))


# Damaged directories.


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-99])


def _edit(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(values | changes))

    return edit


def _rewrite(change: Any, **metadata: str) -> Any:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file(change(tensors), folder / WEIGHTS, metadata=metadata or None)

    return rewrite


def _without(part: str) -> Any:
    return _rewrite(lambda tensors: {name: t for name, t in tensors.items() if part not in name})


DAMAGES = {
    "cut": (_cut, "adapter_model.safetensors: damaged or truncated"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no adapter_model.safetensors; save the adapter again"),
    "pickle": (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), "pickle files are not read"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "no adapter_config.json; give the folder of an adapter"),
    "no folder": (shutil.rmtree, "no such folder; give an adapter directory"),
    "not json": (lambda folder: (folder / CONFIG).write_text("{"), "adapter_config.json:1: not valid JSON"),
    "half": (_without("k_proj.lora_B"), "self_attn.k_proj has one of lora_A and lora_B"),
    "empty": (_without("lora_"), "adapts no layer"),
    "other rank": (_edit(r=3), r"has shape \(4, 72\) .* needs \(3, 72\); .* or adapter_model"),
    "no rank": (_edit(r=None), "adapter_config.json: r must be a whole number above 0, got None"),
    "half a rank": (_edit(r=4.5), "r must be a whole number above 0, got 4.5"),
    "true": (_edit(lora_alpha=True), "lora_alpha must be a number above 0, got True"),
    "whole names": (
        _rewrite(lambda t: {n.removeprefix("base_model.model."): x for n, x in t.items()}),
        "of no adapter",
    ),
    "integers": (_rewrite(lambda t: {n: x.int() for n, x in t.items()}), "holds I32; supported"),
    "one label": (_rewrite(lambda t: t | {"base_model.model.score.weight": torch.zeros(1, 32)}), "has 1 label"),
    "metadata": (_rewrite(lambda t: t, bedplate='{"labels": 3}'), "labels in its metadata is malformed"),
    "metadata of no JSON": (_rewrite(lambda t: t, bedplate="{"), "bedplate in its metadata is malformed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_adapter_is_refused(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    made = tmp_path / "made"
    shutil.copytree(adapters["first"], made)
    damage(made)
    model = bedplate.load(bases["qwen3"])
    with pytest.raises(InputError, match=message) as caught:
        model.load_adapter(made)
    assert str(made) in str(caught.value) and "\n" not in str(caught.value) and model.plain is None


def test_an_adapter_whose_tokenizer_is_damaged_leaves_the_model_as_it_was(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(adapters["first"], tmp_path / "made")
    (tmp_path / "made" / "tokenizer.json").write_text("{")
    model = bedplate.load(bases["qwen3"])
    before = logits(model)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        model.load_adapter(tmp_path / "made")
    assert torch.equal(logits(model), before) and model.plain is None


def test_an_adapter_is_not_its_own_base(adapters: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(adapters["first"], tmp_path / "made")
    values = json.loads((tmp_path / "made" / CONFIG).read_text())
    (tmp_path / "made" / CONFIG).write_text(json.dumps(values | {"base_model_name_or_path": str(tmp_path / "made")}))
    with pytest.raises(InputError, match="names itself as its base"):
        bedplate.load(tmp_path / "made")


def test_an_adapter_beside_a_model_is_not_left_out_silently(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(bases["qwen3"], both)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(adapters["first"] / name, both)
    with pytest.raises(
        InputError, match=r"both: holds an adapter \(adapter_config.json\) beside a model; give adapter="
    ):
        bedplate.load(both)
    wanted = logits(bedplate.load(bases["qwen3"], adapter=adapters["first"]))
    assert torch.equal(logits(bedplate.load(both, adapter=both)), wanted)


# Targets.


@pytest.mark.parametrize(
    ("family", "targets", "count"),
    [
        ("qwen3", None, 14),
        ("qwen3", ["q_proj", "down_proj"], 4),
        ("qwen3", ["mlp.up_proj", "layers.1.self_attn.o_proj"], 3),
        ("gpt2", None, 8),
        ("gpt2", ["c_attn"], 2),
        ("gpt2", ["c_proj"], 4),
        ("gpt2", ["attn.c_proj"], 2),
    ],
)
def test_targets_are_named_as_in_transformers(
    bases: dict[str, Path], tmp_path: Path, family: str, targets: list[str] | None, count: int
) -> None:
    made = save(tmp_path / "a", trained(bases[family], targets=targets), bases[family], targets=targets)
    with safe_open(made / WEIGHTS, "pt") as file:
        assert sum(name.endswith("lora_A.weight") for name in file.keys()) == count  # noqa: SIM118
    assert targets is None or json.loads((made / CONFIG).read_text())["target_modules"] == targets


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "qwen3",
            {"targets": ["q_porj"]},
            "adapter.targets: 'q_porj' is no linear layer of a qwen3 block; did you mean",
        ),
        ("qwen3", {"targets": ["q_proj", "c_attn"]}, "'c_attn' is no linear layer of a qwen3 block; .*q_proj, k_proj"),
        ("gpt2", {"targets": ["q_proj"]}, "'q_proj' is no linear layer of a gpt2 block; did you mean 'c_proj'"),
        ("qwen3", {"targets": ["proj"]}, "'proj' is no linear layer"),
        ("qwen3", {"targets": ["lm_head"]}, "'lm_head' is no linear layer"),
        ("qwen3", {"rank": 33}, "adapter.rank=33 is larger than q_proj, a matrix of 32 x 32; give at most 32"),
        ("qwen3", {"rank": 17, "targets": ["k_proj"]}, "k_proj, a matrix of 16 x 32; give at most 16"),
    ],
)
def test_wrong_targets_and_ranks(bases: dict[str, Path], family: str, settings: dict[str, Any], message: str) -> None:
    module = load_module(bases[family])
    with pytest.raises(InputError, match=message):
        put_adapter(module, AdapterRecipe(**{"rank": 4, **settings}), 0)
    assert not any(".lora_" in name for name, _ in module.named_parameters())


# PEFT.

AUTO = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}
AUTO |= {"TOKEN_CLS": "AutoModelForTokenClassification"}


def their_base(base: Path, task: str) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = {} if task == "CAUSAL_LM" else {"num_labels": len(LABELS), "pad_token_id": 0}
    return getattr(transformers, AUTO[task]).from_pretrained(base, **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", AUTO)
def test_peft_computes_the_same_with_our_adapter(
    bases: dict[str, Path], tmp_path: Path, family: str, task: str
) -> None:
    peft = pytest.importorskip("peft")
    labels, pooling = None if task == "CAUSAL_LM" else LABELS, "mean" if task == "TOKEN_CLS" else "last"
    settings = {"rank": 3, "alpha": 5.0, "dropout": 0.1}
    made = trained(bases[family], labels, pooling, **settings)
    save(tmp_path / "ours", made, bases[family], **settings)
    config = json.loads((tmp_path / "ours" / CONFIG).read_text())
    assert (config["task_type"], config["r"], config["lora_alpha"], config["lora_dropout"]) == (task, 3, 5.0, 0.1)
    theirs = peft.PeftModel.from_pretrained(their_base(bases[family], task), tmp_path / "ours").eval()
    with torch.no_grad():
        got = theirs(input_ids=IDS).logits
    got = got.mean(1) if task == "TOKEN_CLS" else got
    torch.testing.assert_close(got, logits(made), atol=ATOL, rtol=0)
    plain = their_base(bases[family], task)(input_ids=IDS).logits
    assert differ(got, plain.mean(1) if task == "TOKEN_CLS" else plain)


def test_peft_finds_the_base_of_our_adapter(bases: dict[str, Path], adapters: dict[str, Path]) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(adapters["first"]).eval()
    with torch.no_grad():
        got = theirs(input_ids=IDS).logits
    torch.testing.assert_close(got, logits(bedplate.load(adapters["first"])), atol=ATOL, rtol=0)
    with torch.no_grad():
        got = their_base(adapters["first"], "CAUSAL_LM")(input_ids=IDS).logits  # so does `transformers` itself
    torch.testing.assert_close(got, logits(bedplate.load(adapters["first"])), atol=ATOL, rtol=0)


def made_by_peft(base: Path, directory: Path, task: str = "CAUSAL_LM", **options: Any) -> Any:
    """PEFT's model with a random adapter, which is saved to `directory`."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": task, "init_lora_weights": False, **options})
    model = peft.get_peft_model(their_base(base, task), config).eval()
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(directory)
    return model


THEIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "list": ("qwen3", "CAUSAL_LM", {"target_modules": ["q_proj", "v_proj"]}),
    "all-linear": ("qwen3", "CAUSAL_LM", {"target_modules": "all-linear"}),
    "llama": ("llama", "CAUSAL_LM", {"target_modules": "all-linear", "lora_dropout": 0.1}),
    "regex": ("llama", "CAUSAL_LM", {"target_modules": r".*layers\.1.*(q|down)_proj"}),
    "one layer": ("qwen3", "CAUSAL_LM", {"target_modules": ["o_proj"], "layers_to_transform": [1]}),
    "rank-stabilised": ("qwen3", "CAUSAL_LM", {"target_modules": ["up_proj"], "use_rslora": True}),
    "rank above the matrix": ("qwen3", "CAUSAL_LM", {"target_modules": ["k_proj"], "r": 40}),
    "gpt2": ("gpt2", "CAUSAL_LM", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "classifier": ("qwen3", "SEQ_CLS", {"target_modules": "all-linear"}),
    "gpt2 classifier": ("gpt2", "SEQ_CLS", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_an_adapter_of_peft_computes_the_same_here(bases: dict[str, Path], tmp_path: Path, name: str) -> None:
    family, task, options = THEIRS[name]
    theirs = made_by_peft(bases[family], tmp_path / "theirs", task, **options)
    model = bedplate.load(bases[family])
    plain = logits(model)
    model.load_adapter(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(input_ids=IDS).logits
    assert differ(expected, plain)
    torch.testing.assert_close(logits(model), expected, atol=ATOL, rtol=0)
    assert model.labels == (["LABEL_0", "LABEL_1", "LABEL_2"] if task == "SEQ_CLS" else None)
    assert torch.equal(logits(bedplate.load(tmp_path / "theirs")), logits(model)), "PEFT has noted the base's path"


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA (use_dora=true) is not supported; merge the adapter into its base with peft"),
    "rank pattern": ({"rank_pattern": {"q_proj": 2}}, 'rank_pattern={"q_proj": 2} is not supported'),
    "alpha pattern": ({"alpha_pattern": {"q_proj": 2}}, 'alpha_pattern={"q_proj": 2} is not supported'),
    "bias": ({"bias": "all"}, "bias='all' is not supported"),
    "lora bias": ({"lora_bias": True, "init_lora_weights": True}, "lora_bias=true is not supported"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base, is not supported"),
    "module": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save='embed_tokens' is not supported"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices=[1, 2] is not supported"),
    "embedding": ({"target_modules": ["embed_tokens"]}, "belongs to no linear layer of this model's blocks"),
    "head": ({"target_modules": ["lm_head"]}, "belongs to no linear layer of this model's blocks"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_of_peft_is_refused(tmp_path: Path, name: str) -> None:
    options, message = UNSUPPORTED[name]
    base = make_base(tmp_path / "base", "llama", tie_word_embeddings=False)
    made_by_peft(base, tmp_path / "theirs", **{"target_modules": ["q_proj"], **options})
    with pytest.raises(InputError, match=re.escape(message)):
        bedplate.load(base, adapter=tmp_path / "theirs")


def test_other_methods_of_peft_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    peft.get_peft_model(their_base(bases["qwen3"], "CAUSAL_LM"), config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(InputError, match="peft_type='IA3' is not supported"):
        bedplate.load(tmp_path / "theirs")


def test_an_adapter_without_a_task_is_for_any_head(
    bases: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT's `task_type` may be null; the adapter is then of the trunk alone."""
    shutil.copytree(adapters["first"], tmp_path / "made")
    _edit(task_type=None)(tmp_path / "made")
    expected = logits(bedplate.load(bases["qwen3"], adapter=adapters["first"]))
    assert torch.equal(logits(bedplate.load(bases["qwen3"], adapter=tmp_path / "made")), expected)
    classifier = Model(Classifier.of(load_module(bases["qwen3"]), LABELS))
    randomize(classifier.module, 4, "score")
    plain = logits(classifier)
    classifier.load_adapter(tmp_path / "made")
    assert classifier.labels == LABELS and differ(logits(classifier), plain)


def test_a_token_classifier_of_peft_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    made_by_peft(bases["qwen3"], tmp_path / "theirs", "TOKEN_CLS", target_modules=["q_proj"])
    with pytest.raises(InputError, match="labels tokens, not texts"):
        bedplate.load(bases["qwen3"], adapter=tmp_path / "theirs")
