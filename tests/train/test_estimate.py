"""The plan's bytes are counted again in real training steps of tiny networks."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from bedplate.api.plan import gpt_config
from bedplate.data.documents import PASSAGES
from bedplate.data.tokenizer import train_tokenizer
from bedplate.errors import InputError
from bedplate.models.gpt import GPT
from bedplate.nn import attention
from bedplate.recipe import Recipe, read_recipe
from bedplate.recipe.schema import ParallelRecipe
from bedplate.tasks.language import Language
from bedplate.train.estimate import Layout, activation_bytes, memory, step_flops
from bedplate.train.hardware import Hardware
from bedplate.train.optim import finish_gradients, make_optimizers
from bedplate.train.parallel import Parallel
from bedplate.train.ranks import Ranks

FAMILIES = ["model.preset=qwen3", "model.preset=llama model.num_key_value_heads=2", "model.preset=gpt2"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True, params=[False, True], ids=["plain_cpu", "bf16_cpu"])
def _cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bf16 keeps the softmax of short rows, whichever this one is."""
    monkeypatch.setattr(attention, "CPU_HAS_BF16", request.param)


def recipe_of(*overrides: str) -> Recipe:
    """3 layers of 64, rows of 128 tokens."""
    values = {
        "out": "-",
        "data": {"path": "-"},
        "model": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
        "tokenizer": {"vocab_size": 512},
        "train": {"steps": 1, "batch_size": 4, "sequence_length": 128, "precision": "fp32"},
    }
    return read_recipe(values, [part for override in overrides for part in override.split()])


def meta(recipe: Recipe) -> GPT:
    with torch.device("meta"):
        return GPT(gpt_config(recipe, recipe.tokenizer.vocab_size))


def planned(recipe: Recipe, gpus: int = 1, *, on_gpu: bool = False) -> dict[str, int]:
    module = meta(recipe)
    layout = Layout.of(recipe, module.config.trunk, gpus)
    return memory(module, recipe, layout, DTYPES[recipe.train.precision], on_gpu=on_gpu)


class Training:
    """Training steps as the loop takes them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, dtype = recipe, DTYPES[recipe.train.precision]
        self.hardware = Hardware(torch.device("cpu"), dtype, 1, "as asked")
        self.module = GPT(gpt_config(recipe, recipe.tokenizer.vocab_size)).train()
        self.module.init_weights(0)
        Parallel(Ranks(), ParallelRecipe(), recipe.train, self.hardware).wrap(self.module)
        self.optimizers = make_optimizers(self.module, recipe.optimizer, dtype)
        shape = recipe.train.batch_size, recipe.train.sequence_length
        self.ids = torch.randint(recipe.tokenizer.vocab_size, shape)

    def loss(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        ids, packing = self.ids[rows], {}
        if self.recipe.data.isolate_documents:
            pos = torch.arange(ids.shape[1]).expand_as(ids) % 50
            packing = {"doc": (pos == 0).cumsum(1), "pos": pos}
        with self.hardware.autocast():
            return self.module.loss(ids, ids, **packing)

    def step(self) -> None:
        size = self.recipe.train.micro_batch_size or len(self.ids)
        weight = torch.zeros(())
        for start in range(0, len(self.ids), size):
            loss, count = self.loss(slice(start, start + size))
            loss.backward()
            weight = weight + count
        finish_gradients(list(self.module.parameters()), weight, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def lasting(self) -> int:
        """Bytes of weights and optimizer state."""
        states = [t for o in self.optimizers for state in o.state.values() for t in state.values()]
        return sum(t.numel() * t.element_size() for t in [*self.module.parameters(), *states])


def saved_bytes(training: Training) -> int:
    """Bytes that autograd keeps of the blocks and the final norm, weights and the loss's own buffers left out."""
    sizes: dict[int, int] = {}
    kept = []  # so that no storage is freed and another takes its address
    left_out = {p.untyped_storage().data_ptr() for p in training.module.parameters()}
    head = training.module.head.weight
    buffers = 4 * (training.ids.numel() * head.shape[1] + head.numel())  # the two of linear_cross_entropy

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)
        if storage.data_ptr() not in left_out:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        training.loss()
    return sum(sizes.values()) - buffers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("switch", ["", "data.isolate_documents=true", "model.dropout=0.1"])
def test_activations_are_what_autograd_keeps(family: str, precision: str, switch: str) -> None:
    recipe = recipe_of(family, switch, f"train.precision={precision}")
    config = meta(recipe).config.trunk
    per_token = activation_bytes(
        config,
        recipe.train,
        DTYPES[precision].itemsize,
        isolate=recipe.data.isolate_documents,
        on_gpu=False,
    )
    counted = saved_bytes(Training(recipe)) - planned(recipe)["weight_casts"]
    assert per_token * 4 * 128 == pytest.approx(counted, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_compiled_blocks(family: str, precision: str) -> None:
    test_activations_are_what_autograd_keeps(family, precision, "train.compile=true")


def peak_bytes(training: Training) -> int:
    """Bytes that tensors hold at the fullest moment of a step, from the profiler's record of every allocation."""
    training.step()  # makes the optimizer's state
    lasting = training.lasting()
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record,
        record_function("step"),
    ):
        training.step()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in record.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return lasting + most


@pytest.mark.parametrize(
    "overrides",
    [
        "model.preset=qwen3",
        "model.preset=gpt2 train.precision=bf16",
        "model.preset=llama train.micro_batch_size=1 train.batch_size=8",
        "model.preset=qwen3 train.activation_checkpointing=true train.batch_size=16 model.num_hidden_layers=8",
        "model.preset=gpt2 optimizer.name=adamw tokenizer.vocab_size=8192 train.batch_size=8",
        "model.preset=gpt2 optimizer.name=adamw train.activation_checkpointing=true train.batch_size=1",
        "model.preset=qwen3 tokenizer.vocab_size=8192 train.precision=bf16 model.tie_word_embeddings=false",
        "model.preset=llama train.precision=bf16 train.batch_size=1 model.num_hidden_layers=12",
    ],
)
def test_the_fullest_moment_of_a_step(overrides: str) -> None:
    recipe = recipe_of(overrides)
    assert planned(recipe)["total"] == pytest.approx(peak_bytes(Training(recipe)), rel=0.1)


def test_parts_add_up_and_follow_the_switches() -> None:
    plain = planned(recipe_of())
    assert plain["total"] == sum(size for part, size in plain.items() if part != "total")
    assert plain["not_at_once"] <= 0 == plain["ema"] == plain["gathered"]
    assert planned(recipe_of("train.ema=0.9"))["ema"] == plain["weights"]
    assert planned(recipe_of("optimizer.name=adamw"))["optimizer"] == 2 * plain["weights"]
    assert planned(recipe_of("train.micro_batch_size=1"))["activations"] == plain["activations"] // 4
    assert planned(recipe_of("train.activation_checkpointing=true"))["activations"] < plain["activations"]
    assert planned(recipe_of("train.compile=true"))["activations"] < plain["activations"]
    dropped = recipe_of("model.dropout=0.1")
    assert planned(dropped, on_gpu=True)["activations"] < planned(dropped)["activations"]  # no probabilities are kept


def test_shards_divide_what_lasts_and_tensor_ranks_divide_matrices() -> None:
    whole, rows = planned(recipe_of("train.batch_size=8")), "train.batch_size=8"
    sharded = planned(recipe_of(rows, "parallel.shard=4"), 4)
    for part in ("weights", "gradients", "optimizer"):
        assert sharded[part] == pytest.approx(whole[part] / 4, rel=0.01)
    assert sharded["activations"] == whole["activations"] // 4 and sharded["gathered"] > 0
    split = planned(recipe_of(rows, "parallel.tensor=4"), 4)
    assert whole["weights"] / 4 < split["weights"] < whole["weights"]  # embeddings and norms are whole
    assert whole["activations"] / 4 < split["activations"] < whole["activations"]


@pytest.mark.parametrize(
    ("overrides", "gpus", "message"),
    [
        ("parallel.shard=4", 6, "parallel.shard=4 x parallel.tensor=1 ranks hold one copy of the model, and 6 GPUs"),
        ("train.batch_size=6", 4, "train.batch_size=6 is not a multiple of 4 data ranks; take a multiple of 4"),
        ("train.micro_batch_size=2", 4, "micro_batch_size=2; take train.micro_batch_size=1, or a multiple of 8"),
        (
            "parallel.tensor=3 train.sequence_length=129",
            3,
            "model.num_attention_heads=4 is not a multiple of parallel.tensor=3",
        ),
        ("parallel.tensor=4 model.num_key_value_heads=2", 4, "model.num_key_value_heads=2 is not a multiple"),
        ("objective.masked_share=0.25", 2, "objective.masked_share=0.25 of the 2 rows that a rank takes at one time"),
    ],
)
def test_what_ranks_cannot_share(overrides: str, gpus: int, message: str) -> None:
    recipe = recipe_of(overrides)
    with pytest.raises(InputError, match=message):
        Layout.of(recipe, meta(recipe).config.trunk, gpus)


def test_flops_are_those_of_the_model_and_of_what_is_computed_beside() -> None:
    recipe = recipe_of("optimizer.name=adamw")
    model, work = step_flops(meta(recipe), recipe)
    assert model == work == 4 * 128 * meta(recipe).flops_per_token(128)
    again = recipe_of("optimizer.name=adamw", "train.activation_checkpointing=true")
    assert 1.2 < step_flops(meta(again), again)[1] / model < 4 / 3
    muon = recipe_of("optimizer.name=muon")
    square, wide = 4 * 3 * (5 * 6 * 64**3), 3 * 3 * 5 * (4 * 64 * 64 * 192 + 2 * 64**3)
    assert step_flops(meta(muon), muon)[1] - model == square + wide


def test_passages_are_planned_as_what_steps_read() -> None:
    options = "optimizer.name=adamw", "objective.passage_batch=8"
    without, recipe = recipe_of(*options), recipe_of(*options, "objective.passage_weight=1")
    planned = step_flops(meta(recipe), recipe)[0] - step_flops(meta(without), without)[0]
    tokenizer = train_tokenizer(["some words of a text"], 300)
    task, rows = Language(meta(recipe), tokenizer), {"ids": torch.zeros(4, 128), "targets": torch.zeros(4, 128)}
    plain = task.flops(rows)
    read = [task.flops(rows | {"passages": torch.zeros(4, 2 * 64 // length, length)}) - plain for length in PASSAGES]
    assert min(read) < planned < max(read) and planned == read[1]
    layout = Layout(1, 1, 1, 4, 4)
    parts = [memory(meta(r), r, layout, torch.float32, on_gpu=False) for r in (without, recipe)]
    assert parts[1]["activations"] == parts[0]["activations"] * 2  # 8 passages of 64 tokens beside 4 rows of 128


def test_muon_takes_as_many_steps_as_is_planned() -> None:
    import inspect

    from bedplate.train.estimate import NEWTON_SCHULZ_STEPS
    from bedplate.train.muon import orthogonalize

    assert inspect.signature(orthogonalize).parameters["steps"].default == NEWTON_SCHULZ_STEPS
