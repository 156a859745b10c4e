"""What a recipe may say. Every field's docstring is its documentation; unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _no_bool(value: object) -> object:
    """YAML's yes and true are no numbers, though Python would take them for 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def _one_is_a_list(value: object) -> object:
    """A folder may be called 2024."""
    return [str(value)] if isinstance(value, str | Path | int) and not isinstance(value, bool) else value


Number = BeforeValidator(_no_bool)
Positive = Annotated[int, Field(gt=0, lt=2**31), Number]
Count = Annotated[int, Field(ge=0), Number]
Rate = Annotated[float, Field(gt=0), Number]
Share = Annotated[float, Field(ge=0, lt=1), Number]
Paths = Annotated[list[str], BeforeValidator(_one_is_a_list)]
Place = Annotated[Path, AfterValidator(Path.expanduser)]  # a shell expands ~ only where a word begins


class Strict(BaseModel):
    """A part of a recipe: no unknown keys, and validated again when changed."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelRecipe(Strict):
    """The network, in the names of `transformers` config files."""

    preset: Literal["qwen3", "llama", "gpt2", "bert", "modernbert"] = "qwen3"
    """architecture; directories written from it load in `transformers` under the same name. bert and modernbert fill
    blanks (objective.masked_share=1), the others write on"""
    hidden_size: Positive = 384
    """width of the residual stream"""
    num_hidden_layers: Positive = 6
    """number of blocks"""
    num_attention_heads: Positive = 6
    """query heads in a block"""
    num_key_value_heads: Positive | None = None
    """key and value heads; fewer than query heads is grouped-query attention (default: as many)"""
    head_dim: Positive | None = None
    """width of a head (default: hidden_size / num_attention_heads)"""
    intermediate_size: Positive | None = None
    """inner width of the MLP (default: 4 hidden sizes, or 8/3 where gated)"""
    max_position_embeddings: Positive | None = None
    """longest context (default: train.sequence_length)"""
    tie_word_embeddings: bool = True
    """whether the output head shares the embedding's weight"""
    rope_theta: Rate = 10_000.0
    """base of the rotary frequencies (qwen3, llama; modernbert: of the layers that see all)"""
    dropout: Share = 0.0
    """dropout on embeddings, attention and residual branches"""


class TokenizerRecipe(Strict):
    """An existing tokenizer, or one trained on the data."""

    path: Place | None = None
    """a tokenizer.json, or a directory that holds one; without it a byte-level BPE is trained"""
    vocab_size: Positive = 8192
    """entries of the tokenizer that is trained"""


class DataRecipe(Strict):
    """Text: where it is, and how it is cut into rows."""

    path: Paths
    """files, folders, globs, tar archives, URLs of fsspec, or hf:org/name; a string or a list"""
    weights: list[Rate] | None = None
    """share of each path in the mixture (default: by size)"""
    column: str = "text"
    """the column or key that holds the text"""
    val_path: Paths | None = None
    """held-out text; without it documents are held out by their hash"""
    val_fraction: Share = 0.01
    """share of documents held out"""
    isolate_documents: bool = False
    """whether documents packed into one row are hidden from each other, with positions that restart"""
    workers: Positive = 1
    """processes that tokenise"""
    cache: Path | None = None
    """folder or URL of tokenised shards (default: $BEDPLATE_CACHE, else ~/.cache/bedplate)"""

    @model_validator(mode="after")
    def _weights_match(self) -> DataRecipe:
        if not self.path:
            raise ValueError("data.path names no file")
        if self.weights is not None and len(self.weights) != len(self.path):
            raise ValueError(f"data.weights has {len(self.weights)} entries for {len(self.path)} paths in data.path")
        return self


class ObjectiveRecipe(Strict):
    """What is learnt beside the next token."""

    masked_share: Annotated[float, Field(ge=0, le=1), Number] = 0.0
    """share of a batch's rows in which hidden tokens are foretold from both sides (0: none, 1: all)"""
    mask_rate: Annotated[float, Field(gt=0, lt=1), Number] = 0.15
    """share of such a row's tokens that are hidden"""
    document_weight: Annotated[float, Field(ge=0)] = 0.0
    """weight of the document objective: from some of a document's words, the others (0: none)"""
    document_batch: Positive = 256
    """documents a step"""
    passage_weight: Annotated[float, Field(ge=0)] = 0.0
    """weight of the passage objective: from the last state of a passage, the document's other words (0: none)"""
    passage_batch: Positive = 64
    """passages of 64 tokens a step; steps with shorter ones have more of them"""


class OptimizerRecipe(Strict):
    """How weights follow gradients."""

    name: Literal["muon", "adamw"] = "muon"
    """muon: Muon on the matrices of blocks and the filters of stems, AdamW on the rest; adamw: AdamW on everything"""
    learning_rate: Rate = 3e-3
    """AdamW's peak learning rate"""
    muon_learning_rate: Rate = 0.02
    """Muon's peak learning rate"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """decoupled weight decay of matrices; vectors have none"""
    beta1: Share = 0.9
    """AdamW's decay of the first moment"""
    beta2: Share = 0.95
    """AdamW's decay of the second moment"""
    momentum: Share = 0.95
    """Muon's momentum"""
    clip_norm: Rate | None = 1.0
    """largest gradient norm (null: no clipping)"""


class ScheduleRecipe(Strict):
    """How the learning rate moves over the run."""

    name: Literal["wsd", "cosine"] = "wsd"
    """wsd: warm up, stay, decay linearly; cosine: warm up, then half a cosine"""
    warmup: Share = 0.02
    """share of the steps that warm up"""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.65
    """share of the steps that decay (wsd)"""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """learning rate at the end, as a share of the peak"""


class LoopRecipe(Strict):
    """The loop, whatever is trained."""

    batch_size: Positive = 32
    """rows a step, over all ranks and micro-batches"""
    micro_batch_size: Positive | None = None
    """rows at one time on a rank (default: all); gradients of the rest are accumulated"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast where the hardware multiplies bf16 itself, fp32 otherwise"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: the first GPU, else the CPU"""
    threads: Positive | None = None
    """CPU threads (default: OMP_NUM_THREADS, else the cores that this process may use)"""
    compile: bool = False
    """torch.compile: faster steps after a minute of compiling; needs a C++ compiler on the CPU"""
    activation_checkpointing: bool = False
    """recompute each block in the backward pass: less memory for about a third more time"""
    ema: Share | None = None
    """decay of an exponential moving average of the weights, which is then what is evaluated and saved"""


class TrainRecipe(LoopRecipe):
    """The loop of pre-training."""

    steps: Positive
    """optimizer steps"""
    sequence_length: Positive = 256
    """tokens a row"""


class ParallelRecipe(Strict):
    """How the ranks that `torchrun` starts share the work; those that neither of the two takes hold replicas."""

    shard: Positive = 1
    """ranks that share one copy of weights, gradients and optimizer state (FSDP2)"""
    tensor: Positive = 1
    """ranks that share every matrix product (tensor parallelism); best within one machine"""
    timeout: Positive = 600
    """seconds without a finished step after which the run ends, since then a rank hangs"""


class EvaluateRecipe(Strict):
    """What is measured on held-out text while training."""

    every: Positive = 100
    """steps between evaluations"""
    batches: Positive | None = 50
    """held-out text, in batches of train.batch_size rows (null: all)"""
    metric: str = "bits_per_byte"
    """the metric whose best checkpoint is kept: bits_per_byte, loss, masked_loss or masked_accuracy; of bert and
    modernbert loss (default), masked_accuracy or pseudo_bits_per_byte"""
    prompts: list[str] = ["The"]
    """prompts that are continued at each evaluation"""
    sample_tokens: Count = 48
    """tokens of each sample (0: none)"""


class CheckpointRecipe(Strict):
    """What is kept to resume from."""

    every: Positive = 100
    """steps between checkpoints"""
    keep: Positive = 2
    """newest checkpoints kept, beside the best one"""


class LogRecipe(Strict):
    """What is written while training."""

    every: Positive = 10
    """steps between rows of metrics.jsonl"""
    tensorboard: bool = False
    """write TensorBoard events too (extra `track`)"""


class RunRecipe(Strict):
    """What every run has; see `Recipe` and `FinetuneRecipe`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """decides weights, order of data and dropout"""
    out: Place
    """the run directory"""
    train: LoopRecipe
    optimizer: OptimizerRecipe = Field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = Field(default_factory=ScheduleRecipe)
    checkpoint: CheckpointRecipe = Field(default_factory=CheckpointRecipe)
    log: LogRecipe = Field(default_factory=LogRecipe)

    @model_validator(mode="after")
    def _batches_agree(self) -> RunRecipe:
        train = self.train
        if train.micro_batch_size and train.batch_size % train.micro_batch_size:
            raise ValueError(
                f"train.batch_size={train.batch_size} is not a multiple of "
                f"train.micro_batch_size={train.micro_batch_size}"
            )
        return self


class Recipe(RunRecipe):
    """Pre-training."""

    task: Literal["language"] = "language"
    """what is learnt: `language`, the next token of text"""
    base: str | None = None
    """a language model to go on from, with its network and tokenizer: a model directory, a run directory, zoo:NAME or
    hf:ORG/NAME"""
    grow_layers: Positive | None = None
    """blocks that the base is given before it learns on: the new ones are copies that begin as the identity"""
    model: ModelRecipe = Field(default_factory=ModelRecipe)
    tokenizer: TokenizerRecipe = Field(default_factory=TokenizerRecipe)
    data: DataRecipe
    objective: ObjectiveRecipe = Field(default_factory=ObjectiveRecipe)
    train: TrainRecipe
    parallel: ParallelRecipe = Field(default_factory=ParallelRecipe)
    evaluate: EvaluateRecipe = Field(default_factory=EvaluateRecipe)

    @model_validator(mode="after")
    def _base_brings_its_own(self) -> Recipe:
        for section, default in (("model", ModelRecipe()), ("tokenizer", TokenizerRecipe())):
            if self.base and getattr(self, section) != default:
                raise ValueError(f"base={self.base} brings its own {section}; leave `{section}` out, or base")
        if self.grow_layers and not self.base:
            raise ValueError("grow_layers is for a base; without one give model.num_hidden_layers")
        return self

    @model_validator(mode="after")
    def _row_fits(self) -> Recipe:
        limit, length = self.model.max_position_embeddings, self.train.sequence_length
        if limit is not None and limit < length:
            raise ValueError(f"model.max_position_embeddings={limit} is shorter than train.sequence_length={length}")
        tensor = self.parallel.tensor
        if length % tensor:
            raise ValueError(f"train.sequence_length={length} is not a multiple of parallel.tensor={tensor}")
        if tensor > 1 and self.train.compile:
            raise ValueError("train.compile fails in PyTorch where parallel.tensor splits blocks; leave one out")
        self._masked_rows_are_whole()
        self._encoders_fill_blanks()
        self._documents_can_be_drawn("document")
        self._documents_can_be_drawn("passage")
        return self

    def _documents_can_be_drawn(self, what: Literal["document", "passage"]) -> None:
        count, rows = getattr(self.objective, f"{what}_batch"), self.train.batch_size
        if not getattr(self.objective, f"{what}_weight"):
            return
        if self.parallel.tensor > 1:
            raise ValueError(f"objective.{what}_weight is not shared by parallel.tensor ranks; leave one of them out")
        if count % rows:
            raise ValueError(f"objective.{what}_batch={count} is not a multiple of train.batch_size={rows}")

    def _masked_rows_are_whole(self) -> None:
        share, rows = self.objective.masked_share, self.train.micro_batch_size or self.train.batch_size
        if share and self.parallel.tensor > 1:
            raise ValueError("objective.masked_share is not shared by parallel.tensor ranks; leave one of them out")
        if abs(share * rows - round(share * rows)) > 1e-6:
            name = "micro_batch_size" if self.train.micro_batch_size else "batch_size"
            raise ValueError(
                f"objective.masked_share={share} of train.{name}={rows} is no whole number of rows; change one of them"
            )

    def _encoders_fill_blanks(self) -> None:
        preset, objective = self.model.preset, self.objective
        if preset not in ("bert", "modernbert"):
            return
        if objective.masked_share != 1:
            raise ValueError(
                f"model.preset={preset} sees all of a text and cannot learn the next token: give "
                f"objective.masked_share=1, not {objective.masked_share:g}, or another model.preset"
            )
        for what in ("document_weight", "passage_weight"):
            if getattr(objective, what):
                raise ValueError(f"objective.{what} is not for model.preset={preset}; leave one of them out")
        if "metric" not in self.evaluate.model_fields_set:
            self.evaluate.metric = "loss"
