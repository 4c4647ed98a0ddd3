"""Log-probabilities of held-out pairs: in batches through TRL's own head, and the numbers of one row at a time."""

import json
from pathlib import Path

import pytest
import torch
from trainer_kit import Warm, job_file, preference_pairs, write_jsonl

from trl_contract.jobfile import JobFile
from trl_trainer.errors import UserError
from trl_trainer.results import evaluation

RECORD = """
import torch
from trl_trainer.results import evaluation
whole, seen = evaluation.completion_logps, []
def completion_logps(model, batch):
    found = whole(model, batch)
    seen.append({**batch, "found": found})
    torch.save(seen, f"FOLDER/seen-{rank}.pt")
    return found
evaluation.completion_logps = completion_logps
"""


def row_by_row(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return sum log p(completion | prompt) of each row, without its padding, the head in fp32."""
    sums = []
    for ids, mask, completion in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        ids, completion = ids[mask == 1], completion[mask == 1]
        with torch.no_grad():
            hidden = model.model(input_ids=ids[None]).last_hidden_state[0].float()
        table = (hidden @ model.lm_head.weight.float().T).log_softmax(-1)
        sums.append(sum(table[i - 1, ids[i]] for i in range(1, len(ids)) if completion[i]))
    return torch.stack(sums)


@pytest.mark.parametrize(
    ("world", "precision", "tolerance"), [(2, "bf16", 0.05), (1, "fp32", 1e-4)], ids=["fsdp2-bf16", "fp32"]
)
def test_log_probabilities_in_batches_are_those_of_single_rows(
    warm: Warm, tmp_path: Path, model_folder: Path, world: int, precision: str, tolerance: float
) -> None:
    from transformers import AutoModelForCausalLM

    write_jsonl(tmp_path / "train.jsonl", preference_pairs(40))
    spec = {
        "training": {"maxSteps": 1, "precision": precision},
        "dataset": {"evalSplit": 0.3},
        "evaluation": {"maxExamples": 12, "perDeviceBatchSize": 3},
    }
    job = job_file(tmp_path, model_folder, spec=spec, numProcPerNode=world)
    ended = warm.run(job, world=world, prelude=[RECORD.replace("FOLDER", str(tmp_path))])
    assert ended.codes == [0] * world, ended.logs
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    if precision == "bf16":
        model = model.bfloat16()
    for rank in range(world):
        seen = torch.load(tmp_path / f"seen-{rank}.pt")
        before = seen[: len(seen) // 2]
        assert len(before) == 4 // world, "batches of 3 of the 12 pairs, each measured once before and once after"
        for batch in before:
            found = batch["found"]
            assert (found.shape, found.dtype) == ((6,), torch.float32)
            assert batch["attention_mask"].min() == 0, "rows of one length would show nothing"
            torch.testing.assert_close(found, row_by_row(model, batch), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("accuracy", "passes"), [(0.9, True), (0.8999, False), (float("nan"), False), (None, False)])
def test_least_accuracy_is_reached_by_exactly_that_and_by_no_nan(
    model_folder: Path, tmp_path: Path, accuracy: float | None, passes: bool
) -> None:
    path = job_file(tmp_path, model_folder, "RewardJob", spec={"reward": {"minAccuracy": 0.9}})
    job = JobFile.model_validate(json.loads(path.read_text()))
    metrics = {} if accuracy is None else {"accuracy": torch.tensor(accuracy, dtype=torch.float32).item()}
    if passes:
        evaluation.check(job, metrics)
    else:
        with pytest.raises(UserError, match="minAccuracy: the model has accuracy"):
            evaluation.check(job, metrics)
