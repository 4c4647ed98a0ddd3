"""The memory estimate: hand-computed bytes, the smallest change that fits, and this machine's limit."""

import pytest

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer.preflight import host_memory_findings
from trl_trainer.preflight.memory import Sizes, estimate, host_memory

M = 1_000_000
BIG = 10**15
SIZES = Sizes(parameters=100 * M, linear=80 * M, adapter=2 * M, hidden=512, layers=10, vocabulary=1000, length=100)


def job(kind="SFTJob", nodes=1, processes=1, gpus=False, **sections):
    spec = {
        "model": {"volume": {"claimName": "models", "path": "tiny"}},
        "dataset": {"train": {"configMap": {"name": "data", "key": "train.jsonl"}}},
        **sections,
    }
    if kind == "GRPOJob":
        spec["grpo"] = {"rewards": [{"name": "length", "length": {"target": 3}}], **spec.get("grpo", {})}
    wire = {
        "kind": kind, "namespace": "a", "name": "b", "uid": "u", "paths": {"storage": "/s"}, "spec": spec,
        "numNodes": nodes, "numProcPerNode": processes, "hasGpus": gpus,
    }  # fmt: skip
    return resolve(JobFile.model_validate(wire))


FULL = {"peft": {"method": "none"}}


@pytest.mark.parametrize(
    ("made", "weights", "gradients", "optimizer", "beside"),
    [
        # Full: fp32 weights, gradients and two Adam moments.
        (job(**FULL), 400, 400, 800, 0),
        # Four micro-steps a step (the default): 400 for whole gradients, too, where there is room.
        (job(nodes=2, processes=2, **FULL), 100, 100 + 400, 200, 0),
        # LoRA: a frozen base in the precision of the arithmetic, an fp32 adapter.
        (job(), 400 + 8, 8, 16, 0),
        (job(gpus=True), 200 + 8, 8, 16, 0),
        # QLoRA: 80 M in NF4 (0.515869140625 bytes), the other 20 M in bf16.
        (job(gpus=True, peft={"method": "qlora"}), 41.26953125 + 40 + 8, 8, 16, 0),
        (job(**FULL, training={"optimizer": "adafactor"}), 400, 400, 0, 0),
        (job(gpus=True, **FULL, training={"optimizer": "adamw_bnb_8bit"}), 400, 400, 200, 0),
        # Sharded over the two processes of each of four nodes.
        (job(nodes=4, processes=2, **FULL, fsdp={"hybrid": True}), 200, 200 + 400, 400, 0),
        (job(gpus=True, nodes=2, processes=2, **FULL, fsdp={"cpuOffload": True}), 0, 400, 0, 0),
        # Not resharded: every process also holds the whole gathered model, in bf16.
        (job(gpus=True, nodes=2, **FULL, fsdp={"reshardAfterForward": False}), 200 + 200, 200 + 400, 400, 0),
        # The reference is a whole copy on each process, unless it is precomputed or has an adapter to switch off.
        (job("DPOJob", nodes=2, gpus=True, **FULL), 200, 200 + 400, 400, 200),
        (job("DPOJob", **FULL, dpo={"referenceModel": {"mode": "precompute"}}), 400, 400, 800, 0),
        # Under FSDP TRL precomputes with a whole fp32 copy.
        (job("DPOJob", nodes=2, **FULL, dpo={"referenceModel": {"mode": "precompute"}}), 200, 200 + 400, 400, 400),
        (job("DPOJob"), 408, 8, 16, 0),
        (job("GRPOJob", **FULL), 400, 400, 800, 400),
        (job("GRPOJob", **FULL, grpo={"beta": 0}), 400, 400, 800, 0),
    ],
)
def test_certain_bytes_per_process(made, weights, gradients, optimizer, beside):
    found = estimate(made, SIZES, BIG, "cpu")
    assert (found.weights, found.gradients, found.optimizer, found.beside) == tuple(
        round(value * M) for value in (weights, gradients, optimizer, beside)
    )
    assert found.certain == found.weights + found.gradients + found.optimizer + found.beside + found.saving


@pytest.mark.parametrize(
    ("made", "room", "sync_each_batch"),
    [
        # Whole gradients: 4 bytes x 100 M full, x 2 M with an adapter.
        (job(nodes=2, **FULL), 400 * M, False),
        (job(nodes=2, **FULL), 400 * M - 1, True),
        (job(nodes=2), 8 * M, False),
        (job(nodes=2), 8 * M - 1, True),
        # Nothing is kept with one micro-step, or reduced with one process.
        (job(nodes=2, **FULL, training={"gradientAccumulationSteps": 1}), 0, False),
        (job(**FULL), 0, False),
    ],
)
def test_gradients_are_reduced_once_a_step_where_whole_ones_fit(made, room, sync_each_batch):
    least = estimate(made, SIZES, 0, "cpu")
    found = estimate(made, SIZES, least.total + room, "cpu")
    assert found.sync_each_batch is sync_each_batch
    assert found.gradients - least.gradients == (room if not sync_each_batch else 0)
    assert found.total <= found.available
    assert found.change is None


@pytest.mark.parametrize(
    ("made", "device", "saving"),
    [
        # Weights and two Adam moments of this process's half; an adapter is gathered and saved whole instead.
        (job(nodes=2, **FULL), "cpu", 600),
        (job(nodes=2), "cpu", 0),
        (job(**FULL), "cpu", 0),
        (job(nodes=2, gpus=True, **FULL), "cuda", 0),
    ],
)
def test_several_cpu_processes_hold_the_copy_that_they_save(made, device, saving):
    assert estimate(made, SIZES, BIG, device).saving == saving * M


@pytest.mark.parametrize(
    ("made", "offloaded", "limit", "says"),
    [
        (job(nodes=2, processes=4, gpus=True, **FULL), 0, 11, ["up to 12.0 GiB of each pod's memory", "11.0 GiB"]),
        (job(nodes=2, processes=4, gpus=True, **FULL), 0, 12, []),
        # Each node has a whole copy of the state.
        (job(nodes=2, processes=4, gpus=True, **FULL, fsdp={"hybrid": True}), 0, 23, ["up to 24.0 GiB", "23.0 GiB"]),
        (job(nodes=2, processes=4, gpus=True, **FULL, fsdp={"cpuOffload": True}), 2**30, 15, ["up to 16.0 GiB"]),
        (job(nodes=2, processes=4, gpus=True, **FULL, fsdp={"cpuOffload": True}), 2**30, 16, []),
        (job(nodes=2, processes=4, gpus=True), 0, 1, []),
        (job(gpus=True, **FULL), 0, 1, []),
    ],
)
def test_a_pod_of_gpus_with_too_little_memory_for_the_copy_is_told(made, offloaded, limit, says):
    found = host_memory_findings(made, 12 * 2**30, offloaded, limit * 2**30)
    assert len(found) == bool(says)
    assert all(part in found[0] for part in says)


def test_an_explicit_reference_and_reward_models_count_in_full():
    explicit = {"mode": "explicit", "source": {"volume": {"claimName": "models", "path": "other"}}}
    dpo = job("DPOJob", nodes=2, dpo={"referenceModel": explicit})
    sizes = Sizes(**{**SIZES.__dict__, "other_model": 70 * M, "reward_models": 0})
    assert estimate(dpo, sizes, BIG, "cpu").beside == 4 * 70 * M
    sizes = Sizes(**{**SIZES.__dict__, "reward_models": 33 * M})
    assert estimate(job("GRPOJob", nodes=2), sizes, BIG, "cpu").beside == 33 * M


def test_activations_grow_with_rows_and_pairs_and_shrink_with_checkpointing():
    tokens = 4 * 100
    plain = 4 * tokens * 512 * 17 * 10
    assert estimate(job("GRPOJob"), SIZES, BIG, "cpu").activations == plain
    assert estimate(job("RewardJob"), SIZES, BIG, "cpu").activations == 2 * plain
    assert estimate(job("SFTJob"), SIZES, BIG, "cpu").activations == plain + 8 * tokens * 1000
    less = job("GRPOJob", training={"gradientCheckpointing": True})
    assert estimate(less, SIZES, BIG, "cpu").activations == 4 * tokens * 512 * (10 + 17)


@pytest.mark.parametrize(
    ("made", "device", "available", "change"),
    [
        (job(**FULL), "cpu", 1999 * M, None),
        (job(**FULL), "cpu", 1650 * M, "training.gradientCheckpointing: true"),
        (
            job(**FULL, training={"gradientCheckpointing": True}),
            "cpu",
            1610 * M,
            "training.gradientCheckpointing: true with perDeviceBatchSize: 1 and gradientAccumulationSteps: 16",
        ),
        (job(**FULL), "cpu", 1500 * M, "peft.method: lora"),
        (job(gpus=True, **FULL), "cuda", 1500 * M, "training.optimizer: adamw_bnb_8bit"),
        (job("DPOJob", gpus=True, **FULL), "cuda", 1700 * M, "dpo.referenceModel.mode: precompute"),
        (job(gpus=True), "cuda", 200 * M, "peft.method: qlora"),
        (job(), "cpu", 300 * M, "numNodes: 2"),
        (job(nodes=2, processes=2, fsdp={"hybrid": True}), "cpu", 150 * M, "fsdp.hybrid: false"),
        (job(processes=4), "cpu", 60 * M, "numNodes: 2"),
        (job(), "cpu", 100, None),
    ],
)
def test_the_smallest_change_that_fits_is_named(made, device, available, change):
    assert estimate(made, SIZES, available, device).change == change


def test_a_named_change_really_fits():
    found = estimate(job(**FULL), SIZES, 1500 * M, "cpu")
    assert found.certain > 1500 * M
    assert estimate(job(peft={"method": "lora"}), SIZES, 1500 * M, "cpu").certain <= 1500 * M


def test_the_description_has_every_number():
    found = estimate(job(**FULL), Sizes(**{**SIZES.__dict__, "parameters": 2**30}), 20 * 2**30, "cpu")
    assert found.describe() == (
        "16.0 GiB per process (weights 4.0, gradients 4.0, optimizer 8.0) and about 0.1 GiB of activations;"
        " the process has 20.0 GiB"
    )


@pytest.fixture
def machine(tmp_path):
    """A file system with 8 GiB of memory and the given control groups."""

    def make(cgroup, limits):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text("MemTotal:        8388608 kB\nMemFree: 1 kB\n")
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for path, limit in limits.items():
            (tmp_path / "sys/fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sys/fs/cgroup" / path).write_text(f"{limit}\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "max"}, 8 * 2**30),
        ("0::/\n", {"memory.max": 3 * 2**30}, 3 * 2**30),
        ("0::/pod/box\n", {"pod/memory.max": 2**30, "pod/box/memory.max": "max"}, 2**30),
        ("0::/outside/the/container\n", {"memory.max": 2**30}, 2**30),
        ("4:memory:/pod\n3:cpu:/\n", {"memory/pod/memory.limit_in_bytes": 2**30}, 2**30),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": 9223372036854771712}, 8 * 2**30),
    ],
)
def test_the_lowest_limit_of_the_control_groups_counts(machine, cgroup, limits, expected):
    assert host_memory(machine(cgroup, limits)) == expected


def test_this_machine_has_memory():
    assert 2**28 < host_memory() < 2**48
