"""What is worth a look in a job that can work, in words. Pure."""

from trl_contract.jobfile import JobFile
from trl_trainer.launch.host_memory import size
from trl_trainer.preflight import steps
from trl_trainer.preflight.architecture import Architecture
from trl_trainer.preflight.lengths import Lengths
from trl_trainer.preflight.memory import MemoryEstimate


def held_out(job: JobFile, seen: Lengths) -> list[str]:
    found = [dropped(job, seen)] if seen.held_out_dropped else []
    if seen.held_out_cut:
        limit = f"training.maxLength {job.spec.max_length}"
        found.append(f"{seen.held_out_cut} of {seen.held_out} held-out rows are cut: longer than {limit}")
    return found


def dropped(job: JobFile, seen: Lengths) -> str:
    return (
        f"{seen.held_out_dropped} of {seen.held_out} held-out rows are dropped: nothing of them that would be learnt is"
        f" within training.maxLength {job.spec.max_length}"
    )


def warmup(job: JobFile, total: int | None) -> list[str]:
    warmup = job.spec.training.warmup_steps
    if warmup is None or total is None or warmup < total:
        return []
    return [
        f"training.warmupSteps {warmup}: the job has {total} steps, so {steps.warmup(job, total)} of them warm up:"
        " lower it"
    ]


def experts(base: Architecture) -> list[str]:
    if not base.bare_experts:
        return []
    return [
        f"peft.targetParameters: the experts of the model, {100 * base.in_bare_experts / base.parameters:.0f} % of its"
        f" parameters, get no adapter: add {', '.join(base.bare_experts)}"
    ]


def vocabulary(job: JobFile, base: Architecture) -> list[str]:
    if not job.spec.model.add_tokens:
        return []
    names, had = ", ".join(job.spec.model.add_tokens), base.vocabulary - base.grown
    return [f"model.addTokens: the embeddings have {had} rows, and {base.grown} more are added for {names}"]


def host_memory(needs: dict[str, int], limit: int) -> list[str]:
    """Return what to say when the pod's memory, `limit` bytes, may not suffice for what the processes of a node do
    there (host.of_node)."""
    doing, wanted = max(needs.items(), key=lambda item: item[1])
    if wanted <= limit:
        return []
    return [
        f"{doing} takes up to {size(wanted)} of each pod's memory, and it has {size(limit)}: raise"
        " resources.limits.memory"
    ]


def disk(job: JobFile, checkpoint: int, final: int, free: int) -> list[str]:
    """Return what to say about disk space that suffices for a while."""
    # A new checkpoint is written before an old one goes.
    wanted = (job.spec.checkpoint.keep + 1) * checkpoint + final
    if free < wanted:
        return [f"storage: {size(free)} are free; checkpoint.keep {job.spec.checkpoint.keep} needs {size(wanted)}"]
    return []


def row_lengths(job: JobFile, base: Architecture, seen: Lengths) -> list[str]:
    found = []
    about = "" if seen.exact else "about "
    for count, what in ((seen.dropped, "dropped"), (seen.cut, "cut")):
        if count:
            share = f"{about}{100 * count / seen.sampled:.1f} %"
            found.append(
                f"{share} of the training rows are {what}: longer than training.maxLength"
                f" {job.spec.max_length} (99 % have at most {seen.p99} tokens)"
            )
    longest = job.spec.sequence_length(seen.longest)
    if base.positions is not None and longest > base.positions:
        found.append(f"sequences of {longest} tokens are longer than the {base.positions} that the model was made for")
    return found


def tight_memory(needs: MemoryEstimate) -> list[str]:
    if needs.fits:
        return []
    change = f"; what would fit: {needs.change}" if needs.change else ""
    return [f"memory is tight: {needs.describe()}{change}"]
