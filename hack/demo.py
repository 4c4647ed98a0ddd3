"""The main job from nothing to a better model: `make demo`.

Brings up the cluster, builds the images, installs the chart, trains a base model once, runs a DPOJob of two nodes on it
and shows what it changed. Can be interrupted and repeated at any point: every step starts from what it finds.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import yaml

from devcluster import images, other, paths, release, tools
from devcluster.errors import DevClusterError
from devcluster.process import run

FILES = paths.REPOSITORY / "examples/demo"
NAMESPACE = "trl-demo"
NAME = "polite"
COLUMNS = "{:>8}  {:<10}  {:>7}  {:>7}  {:>7}  {:>6}"
BASE_SECONDS = 1200
JOB_SECONDS = 1800
EVALUATION_SECONDS = 600
SHOWN_PROMPTS = 3

Object = dict[str, Any]


class Demo:
    """kubectl in the demo's namespace, and what is printed."""

    def __init__(self) -> None:
        self.cluster = os.environ.get("CLUSTER", "")
        self.kubeconfig = other.kubeconfig(self.cluster) if self.cluster else paths.KUBECONFIG
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        to = (f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}")
        return run(tools.binary("kubectl"), *to, *arguments, given=given)

    def get(self, *arguments: str) -> Object | None:
        text = self.kubectl("get", "--ignore-not-found", "--output=json", *arguments)
        found: Object | None = json.loads(text) if text else None
        return found

    def apply(self, *objects: Object) -> None:
        items = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", given=items)

    def command(self, *arguments: str) -> str:
        """Return a kubectl command line that the user can copy."""
        return f"kubectl --kubeconfig={self.kubeconfig} -n {NAMESPACE} {' '.join(arguments)}"


def main() -> int:
    demo = Demo()
    try:
        prepare(demo)
        base_model(demo)
        status = train(demo)
        compare(demo, status)
    except DevClusterError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; `make demo` goes on from what is there, `make cluster-down` takes it away")
        return 130
    return 0


def prepare(demo: Demo) -> None:
    """The cluster is up with this checkout's images, the operator and an empty place for the demo."""
    demo.say("cluster")
    subprocess_devcluster("up", "--yes")
    if not demo.cluster:
        demo.say("images")
        for name in images.NAMES:
            images.build(name)
    demo.say("operator: helm upgrade --install")
    release.install(demo.kubeconfig)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    demo.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})


def subprocess_devcluster(*arguments: str) -> None:
    command = [sys.executable, "-m", "devcluster", *arguments]
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": str(paths.REPOSITORY / "hack")}).returncode:
        raise DevClusterError("the cluster did not come up; see above, and `make cluster-logs`")


def base_model(demo: Demo) -> None:
    """The base model and the preference pairs are in the claim demo-models; made once, kept under their hash."""
    scripts = {path.name: path.read_text() for path in FILES.iterdir() if path.suffix in (".py", ".yaml")}
    demo.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-scripts"}, "data": scripts})
    claim, job = manifests("base-model.yaml")
    demo.apply(claim)
    demo.say("base model: pre-training 2 million parameters, unless the claim demo-models has it already")
    run_job(demo, job, BASE_SECONDS)


def train(demo: Demo) -> Object:
    """The DPOJob has succeeded; return its status."""
    demo.kubectl("delete", f"dpojob/{NAME}", "--ignore-not-found", "--timeout=120s")
    demo.say("kubectl apply -f examples/demo/dpojob.yaml")
    demo.kubectl("apply", "--filename", str(FILES / "dpojob.yaml"))
    print("\n" + COLUMNS.format("TIME", "PHASE", "STEP", "LOSS", "MARGIN", "ETA"), flush=True)
    deadline = time.monotonic() + JOB_SECONDS
    shown: tuple[str, ...] = ()
    while time.monotonic() < deadline:
        found = demo.get(f"dpojob/{NAME}")
        if found is None:
            raise DevClusterError(f"dpojob {NAME} was deleted while it ran; start again with `make demo`")
        status: Object = found.get("status", {})
        row = table_row(status)
        if row != shown:
            print(COLUMNS.format(f"{time.monotonic() - demo.start:.0f} s", *row), flush=True)
            shown = row
        if status.get("phase") == "Succeeded":
            print(flush=True)
            return status
        if status.get("phase") in ("Failed", "Cancelled"):
            raise DevClusterError(explain(demo, status))
        time.sleep(1)
    raise DevClusterError(
        f"dpojob {NAME} is not done after {JOB_SECONDS} s; see: {demo.command('describe dpojob', NAME)}"
    )


def table_row(status: Object) -> tuple[str, ...]:
    progress = status.get("progress", {})
    metrics = {metric["name"]: metric["value"] for metric in progress.get("metrics", ())}
    margin = metrics.get("rewards/margins", "")
    return (
        status.get("phase", "Pending"),
        progress.get("display", ""),
        progress.get("loss", "")[:7],
        margin[:7],
        progress.get("eta", ""),
    )


def explain(demo: Demo, status: Object) -> str:
    failure = status.get("failure", {})
    return "\n".join(
        [
            f"dpojob {NAME} failed: {failure.get('reason')}: {failure.get('message')}",
            f"hint: {failure.get('hint')}",
            failure.get("log", ""),
            f"see: {demo.command('describe dpojob', NAME)}",
            f"and: {demo.command('logs --tail=100 --selector=trl-operator.io/job-name=' + NAME)}",
        ]
    )


def compare(demo: Demo, status: Object) -> None:
    """Print what DPO changed on pairs and prompts that it has not seen, for both models alike."""
    demo.say("held-out pairs and prompts: base and tuned model")
    tuned = next(artifact["uri"] for artifact in status["artifacts"] if artifact["type"] == "model")
    claim = f"{NAME}-dpo"
    (job,) = manifests("evaluate.yaml")
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["args"] = [*container["args"], f"/tuned/{tuned}"]
    log = run_job(demo, job, EVALUATION_SECONDS)
    base, after = (json.loads(line) for line in log.splitlines() if line.startswith('{"model"'))
    print("\n" + "{:<58}{:>8}{:>8}".format("", "BASE", "TUNED"))
    for title, name in (
        ("held-out pairs with log p(chosen) > log p(rejected)", "accuracy"),
        ("mean of log p(chosen) - log p(rejected)", "margin"),
        ("64 sampled answers: well-formed and acting", "acting"),
        ("chosen replies, nats per token", "chosenNll"),
    ):
        print(f"{title:<58}{base[name]:>8.2f}{after[name]:>8.2f}")
    for prompt, before, answer in zip(base["prompts"], base["answers"][:SHOWN_PROMPTS], after["answers"], strict=False):
        print(f"\n  customer: {prompt}\n  base:     {before}\n  tuned:    {answer}")
    print(f"\nThe model is in the claim {claim}, folder {tuned}. The cluster stays up:")
    print(f"  {demo.command('get dpojobs')}")
    print("  make cluster-down")


def manifests(name: str) -> Iterator[Object]:
    """Read a file of examples/demo; the trainer image is the one that this checkout builds."""
    for found in yaml.safe_load_all((FILES / name).read_text()):
        if found["kind"] == "Job":
            found["spec"]["template"]["spec"]["containers"][0]["image"] = release.reference("trainer")
        yield found


def run_job(demo: Demo, job: Object, seconds: float) -> str:
    """Run a Kubernetes Job anew, showing its log as it grows; return the log. Raises DevClusterError if it fails."""
    name = job["metadata"]["name"]
    demo.kubectl("delete", f"job/{name}", "--ignore-not-found", "--cascade=foreground", "--timeout=120s")
    demo.apply(job)
    deadline = time.monotonic() + seconds
    printed = 0
    while time.monotonic() < deadline:
        state = (demo.get(f"job/{name}") or {}).get("status", {})
        log = demo.kubectl("logs", f"job/{name}") if state.get("ready") or state.get("succeeded") else ""
        for line in log[printed : log.rfind("\n") + 1].splitlines():
            if not line.startswith("{"):
                print(f"         {line}", flush=True)
        printed = max(printed, log.rfind("\n") + 1)
        if state.get("succeeded"):
            return log
        if state.get("failed"):
            log = demo.kubectl("logs", f"job/{name}", "--tail=30")
            raise DevClusterError(f"job {name} failed:\n{log}\nsee: {demo.command('describe job', name)}")
        time.sleep(1)
    raise DevClusterError(f"job {name} is not done after {seconds:.0f} s; see: {demo.command('describe job', name)}")


if __name__ == "__main__":
    sys.exit(main())
