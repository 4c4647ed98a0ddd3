"""The form of a checkpoint: shards, one of each rank, or whole tensors that rank 0 has gathered.

accelerate saves and loads in the one form that its plugin names. Here it loads the form that is there, whatever the
job asks for, and neither form holds or gathers a weight that is not trained.
"""

from pathlib import Path
from typing import Any

from accelerate.utils.constants import FSDP_MODEL_NAME
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_trainer.distributed.sharding import gather_trained

SHARDED, FULL = "SHARDED_STATE_DICT", "FULL_STATE_DICT"


def written(folder: Path) -> str:
    """Return the form of the checkpoint in `folder`, which several processes have written."""
    return FULL if (folder / f"{FSDP_MODEL_NAME}.bin").exists() else SHARDED


class Form(TrainerCallback):
    """Has `trainer` load the checkpoint at `path` (None: there is none) as it was written, and save as the job says.
    It comes before every callback that saves. With one process transformers knows one form only."""

    def __init__(self, trainer: Trainer, path: str | None) -> None:
        self._plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
        if self._plugin is None:
            return
        self._saved: str = self._plugin.state_dict_type.name
        if path is not None:
            _set(self._plugin, written(Path(path)))
        if isinstance(trainer.model, PeftModel):
            _save_adapter_only(trainer)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._plugin is not None:
            _set(self._plugin, self._saved)


def _set(plugin: Any, form: str) -> None:
    # Made anew from the form only where there is none.
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type(form)
    # Shards are staged by us (writer.py): a copy of accelerate's would be one too many, and never the same memory.
    plugin.state_dict_config.offload_to_cpu = form == FULL


def _save_adapter_only(trainer: Trainer) -> None:
    """Replace `trainer.save_model`, which gathers the base model beside the adapter in the full form; the sharded one
    is without it too."""

    def save_model(output_dir: str | None = None, **_: Any) -> None:
        if trainer.accelerator.state.fsdp_plugin.state_dict_type.name != FULL:
            return
        state = gather_trained(trainer.model)
        if trainer.is_world_process_zero():
            trainer.model.save_pretrained(output_dir or trainer.args.output_dir, state_dict=state)

    trainer.save_model = save_model
    for config in trainer.model.peft_config.values():
        # peft adds whole embeddings to an adapter whose base, as it is named here, has fewer rows. save_pretrained
        # finds the name again.
        config.base_model_name_or_path = None
