"""What a person may write of a language model: what it starts from, reads and how it is tuned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from loomos.limits import (
    WRITABLE,
    Batch,
    Coefficient,
    Count,
    JsonMap,
    Positive,
    Steps,
    Where,
    Words,
)
from loomos.manifest._document_model import Document, Name
from loomos.manifest._local_path import UPLOAD, UPLOAD_SCHEME, LocalPath


def _is_dataset_uri(uri: str) -> str:
    if uri.startswith(UPLOAD_SCHEME):
        if not UPLOAD.match(uri):
            raise ValueError("after upload: comes the 64 digits that `loomos data list` shows")
        return uri
    scheme, separator, rest = uri.partition("://")
    if separator and (scheme not in ("s3", "file") or not rest):
        raise ValueError("use a local path, file:///path or s3://bucket/prefix")
    if scheme == "s3" and "/" not in rest.strip("/"):
        raise ValueError("name a prefix inside the bucket, as in s3://bucket/prefix")
    return uri


DataUri = Annotated[Where, AfterValidator(_is_dataset_uri), LocalPath("data")]


UNSERVABLE_TYPES = frozenset(
    {"falcon_mamba", "jamba", "mamba", "mamba2", "recurrent_gemma", "rwkv"}
)
"""Model types of transformers with which the engine is known to generate wrong tokens as soon as
it batches requests of different lengths. It tries every model that keeps a state, also others."""


def unservable(model_type: str) -> str:
    """Why a model of this type cannot be served or verified, and what can be done with it."""
    return (
        f"{model_type} keeps a state per sequence that the engine cannot batch; such models can be "
        "trained, published and downloaded, but not served or verified"
    )


class LoRA(Document):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685) as PEFT implements it."""

    r: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the update matrices."""
    alpha: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    """Scale; the update is multiplied by alpha/r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the low-rank path."""
    target_modules: (
        Annotated[list[Words], Field(min_length=1, max_length=1000)] | Literal["all-linear"]
    ) = "all-linear"
    """Names of the linear layers that get an adapter."""


class FineTuning(Document):
    """The optimisation: how long, how fast, in which precision."""

    method: Literal["full", "lora", "qlora"] = "full"
    """Which weights train: all, low-rank adapters, or adapters over a 4-bit base."""
    lora: LoRA = LoRA()
    """Adapter settings for `lora` and `qlora`."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 5e-5
    """Peak learning rate of AdamW."""
    num_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Passes over the training documents; give this or `max_steps`."""
    max_steps: Steps | None = None
    """Optimizer steps; where both are given the run ends at the earlier."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    """Sequences per optimizer step over all ranks. It fixes the data order, whatever the ranks."""
    micro_batch_size: Batch | None = None
    """Sequences per forward pass of a rank; gradients accumulate over the rest. Default: all."""
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576)] = 512
    """Tokens per packed sequence."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up; cosine and linear end at zero."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: Coefficient = 0.0
    """Decoupled weight decay of AdamW."""
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = [0.9, 0.999]
    """Momentum coefficients of AdamW."""
    max_grad_norm: Positive | None = 1.0
    """Clip the global gradient norm to this; null for no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 over fp32 master weights."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of initial weights, data order and dropout."""
    evaluate_every: Steps | None = None
    """Steps between evaluations. Default: a tenth of the run."""
    evaluate_sequences: Batch = 64
    """Packed sequences in one evaluation, over all ranks."""


class Model(Document):
    """What to start from and what to call the result."""

    base_model: Annotated[Where, LocalPath("model")]
    """A local folder, `s3://bucket/prefix`, a Hugging Face hub id, `model:NAME` for a published
    version, or `init:TYPE` for random weights of a transformers model type such as `init:llama`."""
    config: JsonMap = {}
    """For `init:`, fields of the transformers config, such as `hidden_size`."""
    tokenizer: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=r"^(byte|bpe:[0-9]{1,7}|base|/.+|\.\.?/.+|upload:[0-9a-f]{64}|s3://.+|[\w.-]+/[\w.-]+)$",
        ),
        WRITABLE,
        LocalPath("model"),
    ] = "base"
    """`base` (that of the base model), `byte` (one token a byte, built in), `bpe:SIZE` (trained on
    the data), or a folder, S3 prefix or hub id."""
    output_name: Name | None = None
    """Name under which versions are published. Default: the job's name."""
    fine_tuning_config: FineTuning = FineTuning()
    """The optimisation."""

    @property
    def unservable(self) -> str:
        """Why its versions cannot be served, where that is known before they are made."""
        made = self.base_model.removeprefix("init:")
        is_known = self.base_model.startswith("init:") and made in UNSERVABLE_TYPES
        return unservable(made) if is_known else ""

    def faults(self) -> Iterator[str]:
        """An `init:` model has a type and a tokenizer, and only it has a config."""
        is_init = self.base_model.startswith("init:")
        if is_init and not self.base_model.removeprefix("init:"):
            yield "name a transformers model type after init:, as in init:llama"
        if is_init and self.tokenizer == "base":
            yield "an init: model has no tokenizer; set tokenizer: byte or bpe:1024"
        if self.config and not is_init:
            yield "config is only for init: models; remove it"


class Data(Document):
    """What to train and evaluate on."""

    training_dataset: DataUri
    """A file or folder of JSONL, text or Parquet: a path beside the document, which the CLI and
    the SDK upload, `upload:SHA256`, `s3://bucket/prefix`, or a path below the workers'
    `data.roots`."""
    validation_dataset: DataUri | None = None
    """Likewise, for evaluation."""
    validation_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training documents held out for evaluation, chosen by hash."""
    format: Literal["auto", "text", "chat", "prompt_completion", "preference", "prompt"] = "auto"
    """Shape of a record: `text`, `messages`, `prompt` and `completion` (loss on the latter); for
    `dpo`, `prompt`, `chosen` and `rejected`; with `rewards`, `prompt` and whatever else its
    functions want to know. Those three may be texts or lists of messages."""
    text_field: Words = "text"
    """Field that holds the text in JSONL and Parquet records."""
    include: Annotated[list[Where], Field(min_length=1, max_length=1000)] | None = None
    """Globs of file names to take from a folder, such as `*.py`. Default: every known suffix."""
    exclude: Annotated[list[Where], Field(max_length=1000)] = []
    """Globs of file names to leave out, such as `test/*`."""
    preprocessing: Literal["standard_tokenization"] = "standard_tokenization"
    """Tokenise, join with end-of-text, cut into `sequence_length` pieces."""
