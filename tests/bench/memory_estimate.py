"""What preflight estimates for a case of the memory table."""

from functools import cache

from memory_tracker import Case, config

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer import stages
from trl_trainer.models import skeleton
from trl_trainer.preflight import architecture, memory, sizes
from trl_trainer.preflight.architecture import Architecture
from trl_trainer.preflight.lengths import Lengths
from trl_trainer.preflight.memory import MemoryEstimate

KINDS = {"sft": "SFTJob", "dpo": "DPOJob", "grpo": "GRPOJob"}
BIG = 10**15


def estimate(case: Case) -> MemoryEstimate:
    """Return the estimate, by the same path as a job's preflight, with gradients as the case has them."""
    job = _job(case)
    base = _architecture(case.shape, case.method)
    longest = case.length // 2 if case.stage == "grpo" else case.length
    seen = Lengths(rows=1, sampled=1, p50=1, p90=1, p99=1, longest=longest, histogram={})
    return memory._estimate(
        job, sizes(job, base, seen), BIG, "cuda", recompute=case.checkpointing, sync_each_batch=not case.whole_gradients
    )


@cache
def _architecture(shape: str, method: str) -> Architecture:
    job = _job(Case(shape, method, 1, False))
    return architecture.of_model(job, stages.of(job), skeleton.build(config(shape), classifier=False))


def _job(case: Case) -> JobFile:
    spec = {
        "model": {"volume": {"claimName": "models", "path": "base"}},
        "dataset": {"train": {"configMap": {"name": "data", "key": "train.jsonl"}}},
        "peft": {"method": "none" if case.method == "full" else case.method},
        "training": {
            "perDeviceBatchSize": case.rows,
            "gradientAccumulationSteps": case.steps,
            "gradientCheckpointing": case.checkpointing,
            **({} if case.stage == "grpo" else {"maxLength": case.length}),
        },
    }
    if case.stage == "grpo":
        rewards = [{"name": "length", "length": {"target": 3}}]
        spec["grpo"] = {"rewards": rewards, "generation": {"maxCompletionLength": case.length - case.length // 2}}
    wire = {
        "kind": KINDS[case.stage], "namespace": "a", "name": "b", "uid": "u", "numProcPerNode": case.world,
        "hasGpus": True, "paths": {"storage": "/s"}, "spec": spec,
    }  # fmt: skip
    return resolve(JobFile.model_validate(wire))
