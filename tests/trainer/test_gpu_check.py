"""The dry mode of `make gpu-check`: what runs on a GPU runs here on the CPU, so that no time of a GPU is wasted."""

from pathlib import Path

import gpu_check
import pytest
import truth
from gpu_check import Line
from ranks import Machine, NotRun
from trainer_kit import Warm
from truth import Part

REPORT = Path(__file__).parents[2] / "docs/gpu.md"

# Compiling takes a minute on a CPU. Its job differs from dpo's by one field.
SLOW = {"torchCompile"}
NEED_A_GPU = {"memory", "cpuOffload", "qlora", "8-bit optimizer", "fp16", "activationOffloading"}


@pytest.fixture
def machine(warm: Warm, tmp_path: Path) -> Machine:
    made = Machine(tmp_path, warm, device="cpu", shape="tiny")
    made.prepare()
    return made


def test_every_part_holds_on_a_cpu_or_says_that_it_needs_a_gpu(machine: Machine) -> None:
    lines = list(gpu_check.run([part for part in truth.PARTS if part.name not in SLOW], machine, 300))
    said = "\n".join(f"{line.part.name}: {line.outcome}: {line.said}" for line in lines)
    assert {line.part.name for line in lines if line.outcome == "not run"} == NEED_A_GPU, said
    assert [line.part.name for line in lines if line.outcome == "broken"] == [], said
    text = gpu_check.report("truth", lines, machine.done["dpo"].measures["machine"], "tiny")
    assert "Python 3." in text
    assert "trl 1." in text
    assert "| sft | LoRA, bf16: the loss falls | holds | loss " in text


def test_a_part_that_fails_or_hangs_keeps_no_other_from_its_turn(machine: Machine) -> None:
    def raises(machine: Machine) -> dict[str, str]:
        raise RuntimeError("an accident")

    def fails(machine: Machine) -> dict[str, str]:
        machine.train("failing", "DPOJob", peft={"method": "lora", "targetModules": ["nothing"]})
        return {}

    def misses(machine: Machine) -> dict[str, str]:
        raise NotRun("needs a thing")

    parts = [Part(f.__name__, "", 5, f) for f in (raises, fails, misses)]
    lines = list(gpu_check.run(parts, machine, 60))
    assert [line.outcome for line in lines] == ["broken", "broken", "not run"]
    assert lines[0].said == "RuntimeError: an accident"
    assert "exit code 10: peft.targetModules: the model has no nothing" in lines[1].said
    assert lines[2].said == "needs a thing"
    [late] = gpu_check.run(parts[:1], machine, 0)
    assert (late.outcome, late.said) == ("not run", "the 0 s were over")


def test_the_committed_report_has_the_parts_of_today() -> None:
    text = REPORT.read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == [part.name for part in truth.PARTS]
    assert {row[2] for row in rows} <= {"holds", "broken", "not run"}
    if text == gpu_check.report("truth", [Line(part, "not run") for part in truth.PARTS], {}, "0.5b"):
        assert "no machine with a GPU was at hand" in text
