"""`make bench-trainer`: ours against plain TRL with the same config, in one run; raw samples go into one JSON file.

1. Speed: blocks of steps of both alternate in one trainer (blocks.py), with the same batches and equal losses.
   CPU time is noted beside the clock: on a machine that does other things too, it is the steadier of the two. As a
   control, plain TRL is compared with itself in the same way.
2. Start-up: from the command to the first log entry, alternating, without evaluation.
3. Checkpoints: how long training stands still, against transformers' own and torch's asynchronous save (saving.py).

`own` is a part of the first: the CPU time of the trainer's own code alone, which takes few blocks.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import page
import shapes
from blocks import num_blocks

HERE = Path(__file__).parent
TARGET_RATIO = 0.995
TARGET_STARTUP_SECONDS = 5.0
TARGET_OWN_MS = {1: 0.65, 2: 1.3}
"""CPU time of the trainer's own code per step, by processes: of all of them together."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16, from NVIDIA's data sheets."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["all", "own"], default="all")
    parser.add_argument("--shape", choices=shapes.SHAPES, help="default: small, with a GPU 0.5b")
    parser.add_argument("--processes", type=int, nargs="*", help="default: 1 and 2, with GPUs 1 and all of them")
    parser.add_argument("--pairs", type=int, help="interleaved pairs of blocks (default: 40, of own 12)")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps per block (default %(default)s)")
    parser.add_argument("--startups", type=int, default=3, help="starts of each kind (default %(default)s)")
    parser.add_argument("--saves", type=int, default=7, help="saves of each kind (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("bench-trainer.json"))
    parser.add_argument("--page", type=Path, help="put the table of the trainer's own code there")
    given = parser.parse_args()
    given.pairs = given.pairs or (40 if given.part == "all" else 12)
    gpus = num_gpus()
    shape = given.shape or ("0.5b" if gpus else "small")
    worlds = given.processes or sorted({1, gpus} if gpus else {1, 2})
    told = {"environment": environment(gpus), "settings": {**vars(given), "shape": shape}}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        speeds = {str(w): speed(root / f"speed-{w}", shape, w, gpus > 0, given) for w in worlds}
        own = {"environment": told["environment"]} | {w: found["own_cpu_per_step"] for w, found in speeds.items()}
        if given.page:
            page.put(given.page, "bench-trainer-own", own_table(own))
        if given.part == "own":
            known = json.loads(given.output.read_text()) if given.output.exists() else {}
            write(given.output, known | {"own": own})
            return summarize_own(own)
        found: dict[str, Any] = {**told, "speed": speeds, "own": own}
        found["control"] = speed(root / "control", shape, 1, gpus > 0, given, ("plain", "again"))
        found["recompute"] = speed(root / "recompute", shape, 1, gpus > 0, given, ("recompute", "ours"))
        found["startup"] = {str(w): startup(root / f"start-{w}", w, gpus > 0, given.startups) for w in worlds}
        found["checkpoint"] = saving(root / "saving", gpus > 0, given.saves) if max(worlds) > 1 else None
    found["gpu"] = "measured above" if gpus else "not run: this machine has none"
    write(given.output, found)
    return summarize(found)


def write(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1, default=str) + "\n")


def num_gpus() -> int:
    from trl_trainer.local import num_gpus as count

    return count()


def environment(gpus: int) -> dict[str, Any]:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    packages = ("torch", "trl", "transformers", "accelerate", "peft", "datasets")
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "cpu": model.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "load_average": os.getloadavg(),
        "seed": shapes.SEED,
    }


def launch(script: str, world: int, *arguments: str) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    return [sys.executable, *torchrun, str(HERE / script), *arguments]


def execute(argv: list[str], log: Path) -> None:
    """Run one rank program (or torchrun) to its end; its output goes to `log` and is shown when it fails."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    variables |= {"TRL_TERMINATION_LOG": str(log.with_suffix(".end")), "DISABLE_KUBEFLOW_INTEGRATION": "TRUE"}
    with log.open("w") as out:
        done = subprocess.run(argv, stdout=out, stderr=subprocess.STDOUT, env=variables, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}\nfailed with {done.returncode}:\n{log.read_text()[-4000:]}")


def speed(
    folder: Path,
    shape: str,
    world: int,
    gpus: bool,
    given: argparse.Namespace,
    modes: tuple[str, str] = ("plain", "ours"),
    accumulate: int = 1,
    **sections: Any,
) -> dict[str, Any]:
    """Return the time of the first mode / the second, and what belongs to it. `sections`: of the job's spec."""
    first, second = modes
    print(f"{first} / {second}: {shape}, {world} process(es), {given.pairs} pairs of {given.steps} steps", flush=True)
    size, blocks = shapes.SHAPES[shape], num_blocks(given.pairs)
    # An epoch is one block: all blocks have the same batches.
    rows = given.steps * size.batch * accumulate * world
    steps = given.steps * blocks
    job = shapes.make_job(
        folder, size, world=world, gpus=gpus, steps=steps, rows=rows, accumulate=accumulate, **sections
    )
    arguments = ["--job", str(job), "--pairs", str(given.pairs), "--steps", str(given.steps), "--modes", *modes]
    execute(launch("blocks.py", world, *arguments, "--output", str(folder / "out.json")), folder / "log")
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    for name, column in (("ratio", 1), ("cpu_ratio", 2)):
        times = {mode: [sample[column] for sample in found["samples"] if sample[0] == mode] for mode in modes}
        found[name] = median_with_interval([a / b for a, b in zip(times[first], times[second], strict=True)])
        if column == 1:
            found["step_ms"] = {mode: 1000 * statistics.median(s) / given.steps for mode, s in times.items()}
    if "device" in found:
        found |= throughput(found, world)
    return found


def throughput(found: dict[str, Any], world: int) -> dict[str, Any]:
    """Tokens per second, and MFU with 8 FLOPs per parameter and token: 6 for the policy, 2 for the reference."""
    rates = {name: 1000 * found["tokens_per_step"] / ms for name, ms in found["step_ms"].items()}
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in found["device"]), math.nan)
    mfu = {name: 8 * found["parameters"] * rate / (peak * world) for name, rate in rates.items()}
    return {"tokens_per_second": rates, "mfu": mfu}


def median_with_interval(values: list[float]) -> dict[str, float]:
    """The median and its 95 % interval from order statistics, which needs no assumption about the distribution."""
    ordered, count = sorted(values), len(values)
    below = 0
    while sum(math.comb(count, i) for i in range(below + 1)) / 2**count <= 0.025:
        below += 1
    low, high = (ordered[below - 1], ordered[count - below]) if below else (ordered[0], ordered[-1])
    return {"median": statistics.median(ordered), "low": low, "high": high, "count": count}


def startup(folder: Path, world: int, gpus: bool, runs: int) -> dict[str, Any]:
    """Seconds from the command to the first log entry; ours goes through the supervisor, as in a pod."""
    print(f"start-up: {world} process(es), {runs} of each", flush=True)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    logged = {"training": {"maxSteps": 2, "perDeviceBatchSize": 2, "loggingSteps": 1}}
    for i in range(runs):
        for name in ("plain", "ours") if i % 2 == 0 else ("ours", "plain"):
            place = folder / f"{name}-{i}"
            job = shapes.make_job(place, shapes.SHAPES["tiny"], world=world, gpus=gpus, steps=2, rows=64, **logged)
            began = time.time()
            if name == "plain":
                execute(launch("plain.py", world, "--job", str(job)), place / "log")
                line = next(s for s in (place / "log").read_text().splitlines() if "first log at" in s)
                seconds[name].append(float(line.split()[-1]) - began)
            else:
                execute([sys.executable, "-m", "trl_trainer.supervisor", "--job", str(job)], place / "log")
                first = json.loads((place / "storage/bench/metrics.jsonl").read_text().splitlines()[0])
                seconds[name].append(datetime.fromisoformat(first["time"]).timestamp() - began)
    difference = [ours - plain for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)]
    return {"seconds": seconds, "difference": statistics.median(difference)}


def saving(folder: Path, gpus: bool, rounds: int) -> dict[str, Any]:
    print(f"checkpoints: 2 processes, {rounds} of each", flush=True)
    job = shapes.make_job(folder, shapes.SHAPES["checkpoint"], world=2, gpus=gpus, steps=3, rows=64)
    execute(
        launch("saving.py", 2, "--job", str(job), "--rounds", str(rounds), "--output", str(folder / "out.json")),
        folder / "log",
    )
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    found["median_seconds"] = {name: statistics.median(values) for name, values in found["seconds"].items()}
    return found


def said(result: dict[str, Any]) -> str:
    wall, cpu = result["ratio"], result["cpu_ratio"]
    return (f"{wall['median']:.4f} ({wall['low']:.4f} to {wall['high']:.4f}), in CPU time {cpu['median']:.4f}"
            f" ({cpu['low']:.4f} to {cpu['high']:.4f}), {wall['count']} pairs")  # fmt: skip


def own_rows(own: dict[str, Any]) -> list[tuple[int, list[float], list[float], float, float | None]]:
    """Return for each number of processes the milliseconds of each one's callbacks and threads, their sum, and what it
    may be."""
    found = []
    for world in (int(name) for name in own if name != "environment"):
        callbacks, threads = ([rank[f"{what}_ms"] for rank in own[str(world)]] for what in ("callbacks", "threads"))
        found.append((world, callbacks, threads, sum(callbacks) + sum(threads), TARGET_OWN_MS.get(world)))
    return found


def own_table(own: dict[str, Any]) -> list[str]:
    machine = own["environment"]
    lines = ["| processes | callbacks, of each | threads, of each | all together | target |", "|---|---|---|---|---|"]
    for world, callbacks, threads, total, target in own_rows(own):
        each = (" and ".join(f"{ms:.2f}" for ms in values) for values in (callbacks, threads))
        lines.append(f"| {world} | {' ms | '.join(each)} ms | **{total:.2f} ms** | {judged(total, target)} |")
    where = (
        f"{machine['time'][:10]}, {machine['cores']} cores ({machine['cpu']}), load {machine['load_average'][0]:.1f}"
    )
    return [*lines, "", f"{where} before."]


def judged(total: float, target: float | None) -> str:
    return "none" if target is None else f"{target:g} ms {'held' if total <= target else 'MISSED'}"


def summarize_own(own: dict[str, Any]) -> int:
    """Print the CPU time of the trainer's own code; 1 when a target is missed."""
    print("\n".join(own_table(own)))
    return int(any(target is not None and total > target for *_, total, target in own_rows(own)))


def summarize(found: dict[str, Any]) -> int:
    """Print the result; 1 when a target is missed."""
    missed = summarize_own(found["own"])
    for world, result in found["speed"].items():
        missed += result["ratio"]["median"] < TARGET_RATIO
        print(f"plain TRL's time / ours, {world} process(es): {said(result)}; target {TARGET_RATIO}")
        wall, cpu = (sum(result[f"callback_{kind}_us_per_step"].values()) for kind in ("wall", "cpu"))
        print(f"  step {result['step_ms']['ours']:.1f} ms, of it callbacks {wall:.0f} us, {cpu:.0f} us of CPU")
        if "mfu" in result:
            print(f"  {result['tokens_per_second']['ours']:.0f} tokens/s, MFU {result['mfu']['ours']:.3f}, peak memory"
                  f" {result['peak_memory_bytes'] / 2**30:.1f} GiB on {result['device']}")  # fmt: skip
    print(f"  control, plain TRL against itself: {said(found['control'])}")
    print(f"ours with gradient checkpointing (TRL's default) / ours: {said(found['recompute'])}")
    for world, result in found["startup"].items():
        missed += result["difference"] > TARGET_STARTUP_SECONDS
        medians = {name: statistics.median(values) for name, values in result["seconds"].items()}
        print(f"start-up, {world} process(es): ours {medians['ours']:.1f} s, plain {medians['plain']:.1f} s,"
              f" difference {result['difference']:+.1f} s (target {TARGET_STARTUP_SECONDS})")  # fmt: skip
    if found["checkpoint"]:
        medians = found["checkpoint"]["median_seconds"]
        print(f"checkpoint of {found['checkpoint']['bytes'] / 2**20:.0f} MiB, blocking (and durable after):"
              f" ours {medians['ours']:.2f} s ({medians['ours_durable']:.2f} s), transformers"
              f" {medians['transformers']:.2f} s, torch DCP async {medians['dcp_async']:.2f} s"
              f" ({medians['dcp_durable']:.2f} s)")  # fmt: skip
    print(f"GPU: {found['gpu']}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
