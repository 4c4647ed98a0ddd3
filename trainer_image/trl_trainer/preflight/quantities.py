"""What the memory estimate counts with. Torch is not imported."""

from dataclasses import dataclass

from trl_contract.jobfile import JobFile

OPTIMIZER_BYTES: dict[str, float] = {
    "adamw_torch_fused": 8,
    "adamw_torch": 8,
    "adamw_bnb_8bit": 2,
    # Its pages move to host memory when the GPU is full, and adafactor keeps one number per row and column.
    "paged_adamw_8bit": 0,
    "adafactor": 0,
    "sgd": 0,
}
"""State of each optimizer in bytes per trained parameter."""


@dataclass(frozen=True)
class Sizes:
    """What the estimate needs to know about models and rows; counts of parameters, or of values per token."""

    parameters: int
    """The base model's."""
    linear: int
    """Of these, the ones in linear layers of the blocks, which qlora keeps in 4 bit."""
    adapter: int
    """Of the adapter that the job trains or, with method none, would train with lora's defaults."""
    embedding: int
    """Of the input embedding."""
    head: int
    """Of the output head, also where it is the embedding; 0 for a classifier."""
    tied: bool
    """Head and embedding are one."""
    hidden: int
    layers: int
    vocabulary: int
    queries: int
    """Values per token of a block's queries."""
    keys: int
    """And of its keys, which its values have too."""
    wide: int
    """And inside its MLP; of a mixture of experts in all that work on a token."""
    norms: int
    """Values per token that the norms of a block see."""
    length: int
    """Tokens of the longest row that the model will see."""
    stored: int
    """Bytes of the model in its files."""
    largest: int
    """Parameters of its largest tensor."""
    unit: int
    """Parameters that are exported together at least: of the largest block, or of all that is in no block."""
    converted: bool
    """Whether transformers makes the weights of other tensors than the files hold."""
    prompt: int = 0
    """Tokens of the longest prompt that the trainer itself answers (grpo)."""
    other_model: int = 0
    """Of the explicit reference model."""
    reward_models: int = 0
    """Bytes of all reward models."""

    @property
    def block(self) -> float:
        """Parameters of a block: all are alike."""
        return (self.parameters - self.embedding - (0 if self.tied else self.head)) / self.layers


def compute_bytes(job: JobFile) -> int:
    """Return the bytes of a value of the arithmetic."""
    return 4 if job.spec.training.precision == "fp32" else 2
