"""Where models and rows come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from trl_contract.base import Int32, Key, Model, Name, RelativePath, Text, cel


def exactly_one(model: Model, names: tuple[str, ...], field: str) -> None:
    """Raise ValueError unless exactly one of the fields `names` of `model` is given."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(f"{field}: give exactly one of {', '.join(names)}; got {', '.join(given) or 'none'}")


class SecretKeyRef(Model):
    name: Name
    """Name of a Secret in the job's namespace."""
    key: Key = "token"
    """Key in that Secret."""


class HubModel(Model):
    repo: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$")]
    """Repository of the model, like Qwen/Qwen2.5-0.5B-Instruct."""
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Branch, tag or commit; the default branch if unset."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret that holds the access token of a private or gated repository."""


class Volume(Model):
    claim_name: Name
    """Name of a PersistentVolumeClaim in the job's namespace."""
    path: RelativePath
    """Path inside the volume."""


class ConfigMapKey(Model):
    name: Name
    """Name of a ConfigMap in the job's namespace."""
    key: Key
    """Key in that ConfigMap; its extension (.jsonl, .json, .csv) says the format."""


class ModelJobRef(Model):
    kind: Literal["SFTJob", "DPOJob", "GRPOJob"]
    """Kind of the earlier job."""
    name: Name
    """Its name; it is in the job's namespace."""


class ModelSource(Model):
    """Where the base model comes from: exactly one of `hub`, `volume` and `fromJob`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(has(self.hub)?1:0)+(has(self.volume)?1:0)+(has(self.fromJob)?1:0)==1",
                    "give exactly one of hub, volume, fromJob",
                )
            ]
        }
    )

    hub: HubModel | None = None
    """A model on the Hugging Face hub."""
    volume: Volume | None = None
    """A model folder (config.json, safetensors, tokenizer) in a claim."""
    from_job: ModelJobRef | None = None
    """The model that another job leaves, its adapter merged into it: this job waits until that one has succeeded."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    """Attention kernel; unset: the library chooses. The flash ones need GPUs, bf16 and an image that has them."""
    chat_template: Text | None = None
    """Jinja chat template that replaces the tokenizer's own."""
    eos_token: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Token of the vocabulary that ends texts and generation, instead of the tokenizer's own: the one with which the
    chat template ends turns."""
    pad_token: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Token of the vocabulary that fills batches up. Default: the tokenizer's own, or eosToken where it has none."""
    add_tokens: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=64)] | None
    ) = None
    """Tokens that the tokenizer learns. The embeddings grow where they have no rows for them; a new row begins as the
    mean of all others. With peft.method none or lora; an adapter trains and holds the rows of these tokens alone."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        exactly_one(self, ("hub", "volume", "from_job"), "model")
        return self

    def in_volume(self, volume: Volume) -> "ModelSource":
        """Return the same source, its model in this volume."""
        return self.model_copy(update={"hub": None, "volume": volume, "from_job": None})

    @property
    def revision(self) -> str | None:
        """Of the hub's repository; None: its default branch, or no repository."""
        return self.hub.revision if self.hub else None


class HubDataset(Model):
    repo: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$")]
    """Repository of the data set, like trl-lib/ultrafeedback_binarized."""
    revision: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Branch, tag or commit; the default branch if unset."""
    config: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Configuration (subset) of the data set."""
    split: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Split; `train` for `dataset.train` and `test` for `dataset.eval` if unset."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret that holds the access token of a private or gated repository."""


class DataSource(Model):
    """Rows of training data: exactly one of `hub`, `volume`, `configMap` and `inline`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "(has(self.hub)?1:0)+(has(self.volume)?1:0)+(has(self.configMap)?1:0)+(has(self.inline)?1:0)==1",
                    "give exactly one of hub, volume, configMap, inline",
                )
            ]
        }
    )

    hub: HubDataset | None = None
    """A data set on the Hugging Face hub."""
    volume: Volume | None = None
    """A file in a claim: .jsonl, .json, .csv or .parquet, also .gz of the first three."""
    config_map: ConfigMapKey | None = None
    """A key of a ConfigMap."""
    inline: (
        Annotated[
            list[Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]],
            Field(min_length=1, max_length=1000),
        ]
        | None
    ) = None
    """The rows themselves, at most 1,000 and 128 KiB."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        exactly_one(self, ("hub", "volume", "config_map", "inline"), "dataset")
        return self


Format = Literal["auto", "messages", "text", "sharegpt", "alpaca", "openai-dpo"]


class MixtureSource(DataSource):
    """A source of a mixture: exactly one of `hub`, `volume`, `configMap` and `inline`."""

    weight: Annotated[float, Field(gt=0, le=100)] = 1
    """How often each of its rows is trained on in an epoch: at 0.5 half of them, drawn by the seed, at 2 each twice."""
    max_examples: Annotated[Int32, Field(ge=1)] | None = None
    """Use only so many of its rows (the first ones)."""


class Dataset(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel("has(self.train) != has(self.mixture)", "give exactly one of train, mixture"),
                cel(
                    "!has(self.mixture) || !has(self.maxExamples)",
                    "maxExamples is for train: set it in the sources of mixture",
                ),
            ]
        }
    )

    train: DataSource | None = None
    """Rows to train on; or `mixture`."""
    mixture: Annotated[list[MixtureSource], Field(min_length=1, max_length=32)] | None = None
    """Several sources of rows to train on, mixed by the seed."""
    eval: DataSource | None = None
    """Rows to evaluate on; unset: `evalSplit` of the training rows are held out."""
    eval_split: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the training rows held out when there is no `eval`; 0 means no evaluation."""
    seed: Annotated[Int32, Field(ge=0)] = 42
    """Seed of the split and of the order of the rows."""
    shuffle: bool = True
    """Shuffle the rows before each epoch."""
    max_examples: Annotated[Int32, Field(ge=1)] | None = None
    """Use only so many training rows (the first ones)."""
    columns: Annotated[dict[str, Annotated[str, Field(max_length=200)]], Field(max_length=20)] | None = None
    """What TRL expects: the name in the data. For example {chosen: good_answer}."""
    format: Format = "auto"
    """What the rows are. auto: what the columns of each look like; the report says so. messages, text: TRL's own
    columns, of conversations or of plain text. sharegpt: conversations of from and value. alpaca: instruction, input
    and output. openai-dpo: input, preferred_output and non_preferred_output."""
    as_conversation: bool = False
    """Make turns of plain prompts and answers, for a model with a chat template."""
    system_prompt: Text | None = None
    """System message put before every conversation that has none."""
    chat_template_kwargs: (
        Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None
    ) = None
    """What the chat template gets beside the messages, for example {enable_thinking: false}; what a row says in its own
    chat_template_kwargs wins (not in grpo, whose rows may have none)."""
    workers: Annotated[Int32, Field(ge=0, le=64)] = 0
    """So many processes of each rank make batches ahead of training (PyTorch's DataLoader); at 0 the rank itself does.
    Rows are tokenized before training, so that few jobs need any."""
    max_bad_rows: Annotated[Int32, Field(ge=0)] = 0
    """So many malformed rows are dropped and counted; one more fails the job."""

    @model_validator(mode="after")
    def _train_or_mixture(self) -> Self:
        exactly_one(self, ("train", "mixture"), "dataset")
        if self.mixture is not None and self.max_examples is not None:
            raise ValueError("dataset.maxExamples: is for train: set it in the sources of mixture")
        return self


class PromptDataset(Dataset):
    """A data set with prompts of its own (dpo, grpo)."""

    max_prompt_length: Annotated[Int32, Field(ge=1)] | None = None
    """Rows whose prompt has more tokens are dropped and counted."""
