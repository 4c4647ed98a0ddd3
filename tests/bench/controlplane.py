"""python tests/bench/controlplane.py: the operator against a real control plane, beside a floor client in the same run.

Each part is measured on a control plane of its own and kept in the output file, which the other parts leave alone; the
tables of docs/performance.md are made of all that are there. The training-operator does not run but where it is said.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from conftest import Operator, install
from controlplane_load import Api, Obj, connect, finished, floor, ours, run_pods
from controlplane_table import write_tables

from devcluster.controlplane import ControlPlane
from devcluster.paths import REPOSITORY
from devcluster.waiting import wait_for

CRDS = sorted((REPOSITORY / "deploy" / "crds").glob("*.yaml"))
TICKS = os.sysconf("SC_CLK_TCK")
SETTLE_SECONDS, SETTLE_LIMIT = 5, 180


class Bench:
    """A control plane, and operators one after the other, each for one namespace."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.apiserver = plane.pids["kube-apiserver"]
        plane.apply(namespace("trl-system"))
        install(plane, "trl-system")

    @contextmanager
    def operator(self, where: str) -> Iterator[Operator]:
        """A controller that leads and is ready."""
        made = Operator(self.plane, "trl-system", WATCH_NAMESPACES=where)
        made.start()
        try:
            wait_for("it leads", made.leads, 60)
            yield made
        finally:
            made.kill()

    def place(self, name: str) -> str:
        self.plane.apply(namespace(name))
        return name

    def requests(self, operator: Operator, where: str) -> Counter[str]:
        """What the operator asked about one namespace, by verb and resource; a watch counts once."""
        found: Counter[str] = Counter()
        for entry in self.plane.audit(operator.user):
            reference = entry.get("objectRef", {})
            if reference.get("namespace") == where and entry["verb"] != "watch":
                resource = "/".join(filter(None, [reference["resource"], reference.get("subresource")]))
                found[f"{entry['verb']} {resource}"] += 1
        return found


def namespace(name: str) -> Obj:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int, name: str = "VmRSS") -> int:
    """MiB; VmHWM is the most there ever was."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


def at(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3)


def is_write(request: str) -> bool:
    return request.split()[0] not in ("get", "list")


async def pair(bench: Bench, session: Any, number: int, count: int, rate: float | None) -> Obj:
    """Ours, then the floor, each in a namespace of its own."""
    found: Obj = {}
    where = bench.place(f"ours-{number}")
    with bench.operator(where) as operator:
        api = Api(session, where)
        before = cpu(operator.process.pid), cpu(bench.apiserver)
        seconds, each = await ours(api, count, rate)
        after = cpu(operator.process.pid), cpu(bench.apiserver)
        asked = bench.requests(operator, where)
        found["ours"] = {
            "jobs_per_s": round(count / seconds, 1),
            "p50_s": at(each, 0.5),
            "p99_s": at(each, 0.99),
            "operator_ms_per_job": round((after[0] - before[0]) / count * 1000, 2),
            "apiserver_ms_per_job": round((after[1] - before[1]) / count * 1000, 2),
            "reads_per_job": round(sum(n for what, n in asked.items() if not is_write(what)) / count, 2),
            "writes_per_job": round(sum(n for what, n in asked.items() if is_write(what)) / count, 2),
            "rss_mib": memory(operator.process.pid),
            "requests": dict(asked.most_common()),
        }
    first = json.loads(bench.plane.kubectl("get", "pytorchjobs", "j0-dpo-0", "-n", where, "-o", "json"))
    workload = {key: first[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    where = bench.place(f"floor-{number}")
    before_floor = cpu(bench.apiserver)
    seconds, each = await floor(Api(session, where), count, workload, rate)
    found["floor"] = {
        "jobs_per_s": round(count / seconds, 1),
        "p50_s": at(each, 0.5),
        "p99_s": at(each, 0.99),
        "apiserver_ms_per_job": round((cpu(bench.apiserver) - before_floor) / count * 1000, 2),
    }
    return found


async def pairs(bench: Bench, given: argparse.Namespace, rate: float | None = None) -> Obj:
    found = []
    async with connect(bench.plane.kubeconfig) as session:
        for number in range(given.pairs):
            found.append(await pair(bench, session, number, given.jobs, rate))
            print(f"pair {number}: {json.dumps(found[-1])}", flush=True)
    middle = {
        who: {key: statistics.median(each[who][key] for each in found) for key in found[0][who] if key != "requests"}
        for who in ("ours", "floor")
    }
    ratios = {
        f"ratio_{key}": round(statistics.median(each["ours"][key] / each["floor"][key] for each in found), 3)
        for key in ("jobs_per_s", "p50_s", "apiserver_ms_per_job")
    }
    return {"jobs": given.jobs, "pairs": found, "median": middle, **ratios}


async def measure_idle(bench: Bench, operator: Operator, where: str, seconds: float) -> Obj:
    """What the operator asks and takes while nothing happens, once it is through with what has happened."""
    pid, began = operator.process.pid, time.monotonic()
    while time.monotonic() - began < SETTLE_LIMIT:
        used = cpu(pid)
        await asyncio.sleep(SETTLE_SECONDS)
        if cpu(pid) - used < SETTLE_SECONDS / 20:
            break
    settled = time.monotonic() - began
    asked, before, began = bench.requests(operator, where), (cpu(pid), cpu(bench.apiserver)), time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - began
    after = cpu(pid), cpu(bench.apiserver)
    more = bench.requests(operator, where) - asked
    return {
        "settled_s": round(settled, 1),
        "requests_per_s": round(sum(more.values()) / took, 2),
        "writes": sum(n for what, n in more.items() if is_write(what)),
        "operator_core_percent": round((after[0] - before[0]) / took * 100, 2),
        "apiserver_core_percent": round((after[1] - before[1]) / took * 100, 2),
        "rss_mib": memory(pid),
        "requests": dict(more.most_common()),
    }


async def are(bench: Bench, where: str, phase: str, count: int) -> None:
    """Wait until all jobs of the namespace are in this phase."""

    def reached() -> bool:
        text = bench.plane.kubectl("get", "dpojobs", "-n", where, "-o", "jsonpath={.items[*].status.phase}")
        return text.split() == [phase] * count

    await asyncio.to_thread(wait_for, f"{count} jobs are {phase}", reached, 300, 1)


async def idle(bench: Bench, given: argparse.Namespace, running: bool) -> Obj:
    """Nothing happens to jobs that wait for pods, or that run and report nothing."""
    where = bench.place("idle")
    async with connect(bench.plane.kubeconfig) as session:
        with bench.operator(where) as operator:
            api = Api(session, where)
            await ours(api, given.jobs)
            if running:
                await run_pods(api)
            await are(bench, where, "Running" if running else "Starting", given.jobs)
            return {"jobs": given.jobs, **await measure_idle(bench, operator, where, given.seconds)}


async def ended(bench: Bench, given: argparse.Namespace) -> Obj:
    """Start beside many finished jobs and some that run, then nothing happens; writes are counted from the start on."""
    where = bench.place("ended")
    async with connect(bench.plane.kubeconfig) as session:
        api = Api(session, where)
        with bench.operator(where) as operator:
            await ours(api, given.running)
            await run_pods(api)
            await are(bench, where, "Running", given.running)
        await finished(api, given.jobs)
        before, began = bench.requests(operator, where), time.monotonic()
        with bench.operator(where) as operator:
            ready = time.monotonic() - began
            found = await measure_idle(bench, operator, where, given.seconds)
            since = bench.requests(operator, where) - before
            found["writes"] = sum(n for what, n in since.items() if is_write(what))
            found["peak_mib"] = memory(operator.process.pid, "VmHWM")
        return {"jobs": given.jobs, "running": given.running, "ready_s": round(ready, 1), **found}


PARTS: dict[str, Callable[[Bench, argparse.Namespace], Any]] = {
    "burst": pairs,
    "open": lambda bench, given: pairs(bench, given, given.rate),
    "waiting": lambda bench, given: idle(bench, given, running=False),
    "silent": lambda bench, given: idle(bench, given, running=True),
    "finished": ended,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=5, help="of ours and the floor, interleaved (burst, open)")
    parser.add_argument("--rate", type=float, default=10, help="jobs a second (open)")
    parser.add_argument("--running", type=int, default=100, help="jobs that run beside those that have finished")
    parser.add_argument("--seconds", type=float, default=60, help="to look at what is idle")
    parser.add_argument("--training-operator", action="store_true", help="it runs, and makes the pods")
    parser.add_argument("--output", type=Path, help="keep the part in this file, and make the tables of it")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with ControlPlane(crds=CRDS) as plane:
        if not given.training_operator:
            plane.kubectl("delete", "validatingwebhookconfigurations", "--all")
            plane.stop("training-operator")
        began = time.monotonic()
        found: Obj = asyncio.run(PARTS[given.part](Bench(plane), given))
    found |= {
        "date": str(datetime.now().date()),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": round(load, 2),
        "training_operator": given.training_operator,
        "seconds": round(time.monotonic() - began),
    }
    shown = {key: value for key, value in found.items() if key != "pairs"}
    print(json.dumps({given.part: shown}))
    if given.output:
        known = json.loads(given.output.read_text()) if given.output.exists() else {}
        name = f"{given.part}-{given.jobs}" + ("-training-operator" if given.training_operator else "")
        known[name] = found
        given.output.write_text(json.dumps(known, indent=1) + "\n")
        write_tables(REPOSITORY / "docs/performance.md", known)
    return 0


if __name__ == "__main__":
    sys.exit(main())
