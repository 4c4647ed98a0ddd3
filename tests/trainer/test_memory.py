"""The memory estimate: hand-computed bytes, the smallest change that fits, and this machine's limit."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer.launch import host_memory
from trl_trainer.preflight import decide, findings, pinned
from trl_trainer.preflight.host import of_node
from trl_trainer.preflight.memory import FITS, KEPT, estimate, smallest_world
from trl_trainer.preflight.quantities import Sizes

M = 1_000_000
BIG = 10**15
KEPT_ROWS = {"lengths": SimpleNamespace(kept=100), "padded": None}
SIZES = Sizes(
    parameters=100 * M, linear=70 * M, adapter=2 * M, embedding=10 * M, head=10 * M, tied=False, hidden=500, layers=10,
    vocabulary=20_000, queries=500, keys=100, wide=2000, norms=1000, length=100, stored=200 * M, largest=5 * M,
    unit=20 * M, converted=False,
)  # fmt: skip
"""Blocks of 8 M parameters."""


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


def changed(made, processes=None, **training):
    made = made.model_copy(update={"num_proc_per_node": processes or made.num_proc_per_node})
    section = made.spec.training.model_copy(update=training)
    return made.model_copy(update={"spec": made.spec.model_copy(update={"training": section})})


FULL = {"peft": {"method": "none"}}
GROWN = {"model": {"volume": {"claimName": "models", "path": "tiny"}, "addTokens": ["<a>"]}}


SMALL = {"perDeviceBatchSize": 1}
ONCE = {"training": {"gradientAccumulationSteps": 1}}


@pytest.mark.parametrize(
    ("made", "weights", "gradients", "optimizer", "gathered", "beside"),
    [
        # Full: fp32 weights, gradients and two Adam moments.
        (job(**FULL), 400, 400, 800, 0, 0),
        # Two blocks, 8 M each, are gathered, or the head, 10 M: whichever is more.
        (job(nodes=2, processes=2, **FULL, **ONCE), 100, 100, 200, 4 * 16, 0),
        (job(nodes=2, processes=2, gpus=True, **FULL, **ONCE), 100, 100, 200, 2 * 16, 0),
        # Four micro-steps: whole gradients beside the shards, where there is room.
        (job(nodes=2, processes=2, **FULL), 100, 100 + 400, 200, 4 * 16, 0),
        (job(nodes=2), (400 + 8) / 2, 8 / 2 + 8, 16 / 2, 4 * 16, 0),
        # LoRA: a frozen base in the precision of the arithmetic, an fp32 adapter.
        (job(), 400 + 8, 8, 16, 0, 0),
        (job(gpus=True), 200 + 8, 8, 16, 0, 0),
        # An adapter of rank 16 has rows for 16 of 64 processes.
        (job(nodes=64, gpus=True, **ONCE), 200 / 64 + 8 / 16, 8 / 16, 16 / 16, 2 * 16, 0),
        # QLoRA: 70 M in NF4 (half a byte, and 0.015869140625 for constants), the other 30 M in bf16.
        (job(gpus=True, peft={"method": "qlora"}), 35 + 1.11083984375 + 60 + 8, 8, 16, 0, 0),
        # Constants are whole on every process, and blocks are gathered in 4 bit: 7 M of 8 M; the head is more.
        (job(gpus=True, nodes=2, peft={"method": "qlora"}, **ONCE), 95 / 2 + 1.11083984375 + 4, 4, 8, 2 * 10, 0),
        (job(**FULL, training={"optimizer": "adafactor"}), 400, 400, 0, 0, 0),
        (job(gpus=True, **FULL, training={"optimizer": "adamw_bnb_8bit"}), 400, 400, 200, 0, 0),
        # Sharded over the two processes of each of four nodes.
        (job(nodes=4, processes=2, **FULL, **ONCE, fsdp={"hybrid": True}), 200, 200, 400, 4 * 16, 0),
        (job(gpus=True, nodes=2, processes=2, **FULL, fsdp={"cpuOffload": True}), 0, 400, 0, 2 * 16, 0),
        # Not resharded: every process also holds all blocks and the head, in bf16.
        (job(gpus=True, nodes=2, **FULL, **ONCE, fsdp={"reshardAfterForward": False}), 200, 200, 400, 2 * 90, 0),
        # The reference is sharded, unless it is precomputed or has an adapter to switch off.
        (job("DPOJob", nodes=2, gpus=True, **FULL, **ONCE), 200, 200, 400, 2 * 16, 200 / 2),
        (job("DPOJob", **FULL, dpo={"referenceModel": {"mode": "precompute"}}), 400, 400, 800, 0, 0),
        (job("DPOJob", nodes=2, **FULL, **ONCE, dpo={"referenceModel": {"mode": "precompute"}}), 200, 200, 400, 64, 0),
        (job("DPOJob"), 408, 8, 16, 0, 0),
        (job("GRPOJob", **FULL), 400, 400, 800, 0, 400),
        (job("GRPOJob", **FULL, grpo={"beta": 0}), 400, 400, 800, 0, 0),
    ],
)
def test_certain_bytes_per_process(made, weights, gradients, optimizer, gathered, beside):
    found = estimate(made, SIZES, BIG, "cpu")
    assert (found.weights, found.gradients, found.optimizer, found.gathered, found.beside) == tuple(
        round(value * M) for value in (weights, gradients, optimizer, gathered, beside)
    )
    parts = found.weights + found.gradients + found.optimizer + found.gathered + found.beside
    assert found.certain == parts + found.saving


@pytest.mark.parametrize(
    ("made", "device", "saving"),
    [
        # Weights and two Adam moments of this process's half of what is trained.
        (job(nodes=2, **FULL), "cpu", 600),
        (job(nodes=2, fsdp={"stateDictType": "full"}), "cpu", 0),
        (job(**FULL), "cpu", 0),
        (job(nodes=2, gpus=True, **FULL), "cuda", 0),
    ],
)
def test_several_cpu_processes_hold_the_copy_that_they_save(made, device, saving):
    assert estimate(made, SIZES, BIG, device).saving == saving * M


def test_what_costs_less_time_is_kept_where_it_fits_with_room_to_spare():
    """First whole gradients go (400 M, in messages only), then activations are recomputed."""
    made = job(gpus=True, nodes=2, **FULL)
    long = replace(SIZES, length=5000)

    def decided(limit: float) -> tuple[bool, bool]:
        found = estimate(made, long, math.ceil(limit), "cuda")
        return found.gradient_checkpointing, found.sync_each_batch

    kept = estimate(made, long, BIG, "cuda").total
    recomputed = estimate(changed(made, gradient_checkpointing=True), long, BIG, "cuda").total
    assert kept - recomputed > 800 * M
    assert decided(kept / KEPT) == (False, False)
    assert decided(kept / KEPT - 2) == (False, True)
    assert decided((kept - 400 * M) / KEPT) == (False, True)
    # It would fit, but with less than 15 % to spare.
    assert (kept - 400 * M) / KEPT - 2 > kept / FITS - 400 * M
    assert decided((kept - 400 * M) / KEPT - 2) == (True, False)
    assert decided(recomputed / FITS) == (True, False)
    assert decided(recomputed / FITS - 2) == (True, True)
    # Whoever asks for it may fill the GPU.
    asked = estimate(changed(made, gradient_checkpointing=False), long, math.ceil(kept / FITS), "cuda")
    assert asked.fits
    assert not asked.gradient_checkpointing


def test_an_attempt_does_as_the_first_has_decided_unless_memory_was_too_small(tmp_path):
    given = job(gpus=True)
    assert pinned(given, tmp_path) == given, "nothing is decided yet"
    small, known = job(gpus=True), SimpleNamespace(target_modules=["all-linear"], **KEPT_ROWS)
    for available, recomputed in ((BIG, False), (1, True)):
        known.memory = estimate(small, SIZES, available, "cuda")
        (tmp_path / "resolved.json").write_text(json.dumps(decide(small, known).to_wire()))
        assert pinned(given, tmp_path).spec.training.gradient_checkpointing is recomputed
        other = BIG if recomputed else 1
        assert estimate(pinned(given, tmp_path), SIZES, other, "cuda").gradient_checkpointing is recomputed
    (tmp_path / "resolved.json").write_text(json.dumps(changed(small, gradient_checkpointing=False).to_wire()))
    shrunk = given.model_copy(update={"shrunk": True})
    assert estimate(pinned(shrunk, tmp_path), SIZES, BIG, "cuda").gradient_checkpointing
    asked = changed(given, gradient_checkpointing=True)
    assert pinned(asked, tmp_path) == asked


def test_after_an_attempt_ran_out_of_memory_what_needs_least_is_taken_whatever_is_estimated():
    made = job(gpus=True, nodes=2, **FULL).model_copy(update={"shrunk": True})
    found = estimate(made, SIZES, BIG, "cuda")
    assert (found.gradient_checkpointing, found.sync_each_batch) == (True, True)


@pytest.mark.parametrize(
    ("made", "given"),
    [
        (job(nodes=2, **FULL, **ONCE), "nothing is kept with one micro-step"),
        (job(**FULL), "nothing is reduced with one process"),
    ],
)
def test_gradients_are_whole_only_between_the_micro_steps_of_several_processes(made, given):
    assert not estimate(made, SIZES, 1, "cpu").sync_each_batch, given


def test_what_is_given_is_not_decided():
    assert not estimate(job(), SIZES, 1, "cpu").gradient_checkpointing, "off without GPUs"
    made = job(gpus=True, training={"gradientCheckpointing": False})
    assert not estimate(made, SIZES, 1, "cuda").gradient_checkpointing
    made = job(gpus=True, training={"gradientCheckpointing": True})
    assert estimate(made, SIZES, BIG, "cuda").gradient_checkpointing
    known = SimpleNamespace(
        memory=estimate(job(gpus=True), SIZES, 1, "cuda"), target_modules=["all-linear"], **KEPT_ROWS
    )
    assert decide(job(gpus=True), known).spec.training.gradient_checkpointing


def test_an_explicit_reference_is_sharded_and_reward_models_are_whole():
    explicit = {"mode": "explicit", "source": {"volume": {"claimName": "models", "path": "other"}}}
    dpo = job("DPOJob", nodes=2, dpo={"referenceModel": explicit})
    assert estimate(dpo, replace(SIZES, other_model=70 * M), BIG, "cpu").beside == 4 * 70 * M / 2
    assert estimate(job("GRPOJob", nodes=2), replace(SIZES, reward_models=33 * M), BIG, "cpu").beside == 33 * M


def test_activations_of_one_process_by_hand():
    """fp32, LoRA, 4 rows of 100 tokens; per token and block: norms 4 x 1000; inputs of linear layers 2 x 500, queries,
    keys, values and output 4 x 500, mask 100, MLP 4 x 2000, each 4 bytes."""
    tokens, block = 4 * 100, 4 * 1000 + 4 * (2 * 500 + 4 * 500 + 100 + 4 * 2000)
    last, tile = 8 * tokens * 500, 4 * tokens * 32768
    loss = tile + 6 * tokens * 500
    assert estimate(job(), SIZES, BIG, "cpu").activations == 10 * tokens * block + last + loss
    pairs = estimate(job("RewardJob"), replace(SIZES, head=0), BIG, "cpu").activations
    assert pairs == 2 * (10 * tokens * block + last + 4 * 2 * 2000 * tokens), "a classifier has no head"
    less = job(training={"gradientCheckpointing": True})
    assert estimate(less, SIZES, BIG, "cpu").activations == 10 * tokens * 4 * 500 + last + loss


def test_new_rows_of_an_adapter_cost_a_copy_of_the_head_and_its_whole_gradient():
    plain, grown = (estimate(given, SIZES, BIG, "cpu").activations for given in (job(), job(**GROWN)))
    assert grown == plain + (4 + 4) * 10 * M


def test_generation_holds_keys_and_values_of_a_whole_step():
    made = job("GRPOJob", gpus=True, training={"gradientCheckpointing": True})
    answers = replace(SIZES, prompt=10, length=100_000)
    without = estimate(made, replace(answers, keys=0), BIG, "cuda").activations
    cache = 4 * 4 * 100_000 * 10 * 2 * 3000 * 2
    assert estimate(made, replace(answers, keys=3000), BIG, "cuda").activations > max(without, cache)


@pytest.mark.parametrize(
    ("made", "device", "available", "change"),
    [
        (job(**FULL), "cpu", 1999 * M, None),
        (job(**FULL), "cpu", 1710 * M, "training.gradientCheckpointing: true"),
        (
            job(**FULL, training={"gradientCheckpointing": True}),
            "cpu",
            1690 * M,
            "training.perDeviceBatchSize: 2 and gradientAccumulationSteps: 8",
        ),
        (job(**FULL), "cpu", 1500 * M, "peft.method: lora"),
        (job(gpus=True, **FULL), "cuda", 1500 * M, "training.optimizer: adamw_bnb_8bit"),
        # Its kernels do not work with several processes.
        (job(gpus=True, nodes=2, **FULL), "cuda", 800 * M, "peft.method: lora"),
        (job("DPOJob", gpus=True, **FULL), "cuda", 1980 * M, "dpo.referenceModel.mode: precompute"),
        (job(gpus=True), "cuda", 250 * M, "peft.method: qlora"),
        # Which does not train the rows of new tokens.
        (job(gpus=True, **GROWN), "cuda", 250 * M, "numNodes: 4"),
        # qlora needs a GPU.
        (job(), "cpu", 440 * M, "numNodes: 4"),
        (
            job(nodes=2, processes=2, fsdp={"hybrid": True}, training={"gradientCheckpointing": True, **SMALL}),
            "cpu",
            250 * M,
            "fsdp.hybrid: false",
        ),
        (job(), "cpu", 100, None),
    ],
)
def test_the_smallest_change_that_fits_is_named(made, device, available, change):
    assert estimate(made, SIZES, available, device).change == change


def test_the_smallest_number_of_gpus_is_found():
    made = job(gpus=True, **FULL)
    worlds = [smallest_world(made, SIZES, size * M, "cuda") for size in (2000, 1000, 600, 400, 50)]
    assert worlds[0] == 1
    assert worlds[1:-1] == sorted(worlds[1:-1])
    for world, size in zip(worlds[1:-1], (1000, 600, 400), strict=True):
        fits = [estimate(changed(made, processes=n), SIZES, size * M, "cuda").fits for n in (world // 2, world)]
        assert fits == [False, True]
    assert worlds[-1] is None, "the largest block and the head must fit"
    eight = job(gpus=True, **FULL, training={"optimizer": "adamw_bnb_8bit"})
    assert smallest_world(eight, SIZES, 800 * M, "cuda") is None, "works with one process only"


@pytest.mark.parametrize(
    ("made", "doing", "wanted"),
    [
        # One process holds the model; of several each its shards, where it has no GPU.
        (job(gpus=True, **FULL), "loading the model", 400),
        (job(processes=4), "loading the model", 1.2 * (400 + 8)),
        (job(nodes=2, processes=2), "loading the model", 1.2 * (400 + 8) / 2),
        (job(nodes=2, gpus=True), "loading the model", 0),
        (job(nodes=2, gpus=True, fsdp={"cpuOffload": True}), "loading the model", 1.2 * (100 + 4 + 4 + 8)),
        (job("DPOJob", processes=2, **FULL), "loading the model", 1.2 * (400 + 400)),
        # One layer's values in bf16, which each process brings to 4 bits.
        (job(processes=2, gpus=True, peft={"method": "qlora"}), "loading the model", 2 * 2 * 5),
        # DoRA begins with the norms of quantized weights: each process has all, in bf16.
        (job(processes=2, gpus=True, peft={"method": "qlora", "useDora": True}), "loading the model", 2 * 200),
        (job(nodes=2, gpus=True, **FULL), "saving a checkpoint", 2000 / 2),
        # Without GPUs what is trained lies there too: 4 x (100 + 200).
        (job(processes=4, **FULL), "saving a checkpoint", 4 * (100 + 200) + 2000),
        # Each node has a whole copy of the state, and what is offloaded.
        (job(nodes=2, processes=4, gpus=True, **FULL, fsdp={"hybrid": True}), "saving a checkpoint", 2000),
        (job(nodes=2, processes=4, gpus=True, **FULL, fsdp={"cpuOffload": True}), "saving a checkpoint", 800 + 1000),
        # A part of 100 MB (2 bytes a parameter in the files), and the largest tensor.
        (job(gpus=True, **FULL), "exporting the model", 100 + 2 * 5),
        (job(**FULL), "exporting the model", 400 + 800 + 100 + 2 * 5),
        # The adapter twice and the largest tensor in fp32.
        (job(gpus=True), "exporting the model", 100 + 2 * 8 + 4 * 5),
    ],
)
def test_host_memory_by_hand(made, doing, wanted):
    assert needs_of(made, SIZES)[doing] == round(wanted * M)


def needs_of(made, sizes):
    return of_node(made, estimate(made, sizes, BIG, "cuda" if made.has_gpus else "cpu"), sizes, 2000 * M, 100 * M)


def test_converted_weights_take_more():
    sizes = replace(SIZES, converted=True)
    made = job(nodes=2, gpus=True)
    dora = job(nodes=2, gpus=True, peft={"useDora": True})
    assert needs_of(dora, SIZES)["loading the model"] == 0
    assert needs_of(dora, replace(SIZES, stored=400 * M))["loading the model"] == round(2.1 * 200 * M)
    assert needs_of(made, sizes)["loading the model"] == round(2.1 * 200 * M)
    assert needs_of(made, sizes)["exporting the model"] == (3 * 100 + 16 + 20) * M


def test_a_part_is_a_block_at_least_and_the_model_at_most():
    export = "exporting the model"
    made = job(nodes=2, gpus=True, **FULL)
    assert needs_of(made, replace(SIZES, unit=70 * M))[export] == (140 + 10) * M
    assert needs_of(made, replace(SIZES, stored=40 * M))[export] == (40 + 2) * M


def test_a_pod_with_too_little_memory_is_told_for_what():
    needs = {"loading the model": 2 * 2**30, "exporting the model": 3 * 2**30}
    assert findings.host_memory(needs, 3 * 2**30) == []
    (found,) = findings.host_memory(needs, 3 * 2**30 - 1)
    assert found.startswith("exporting the model takes up to 3.0 GiB of each pod's memory")


def test_the_description_has_every_number():
    found = estimate(job(**FULL), replace(SIZES, parameters=2**30), 20 * 2**30, "cpu")
    assert found.describe() == (
        "16.0 GiB per process (weights 4.0, gradients 4.0, optimizer 8.0) and about 0.3 GiB of activations;"
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
    assert host_memory.available(machine(cgroup, limits)) == expected


def test_this_machine_has_memory():
    assert 2**28 < host_memory.available() < 2**48
