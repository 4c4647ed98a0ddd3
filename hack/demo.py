"""The whole product once: `make demo` brings up a cluster, installs the operator and tunes a small model by a DPOJob.

Works again after success, failure or an interrupt: what is there is kept, what was half done is done anew.
CLUSTER=current uses the cluster of the kubeconfig, with images that its nodes know (IMAGE_REGISTRY).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from devcluster import other, paths, release, tools
from devcluster.errors import DevClusterError

FILES = paths.REPOSITORY / "examples/demo"
SCRIPTS = ("data.py", "make_base.py", "phrases.yaml", "check.py", "evaluate.py")
JOB = "demo"
STEPS = 6
BASE_SECONDS = 2400
STUCK_SECONDS = 600
EVALUATION_SECONDS = 600
ROW = "{:<12} {:>16} {:>9} {:>9} {:>7} {:>8}"
PROMPTS = 3

Manifest = dict[str, Any]


class DemoError(Exception):
    """Why the demo ended: what happened, what to do about it, and a command that shows more."""

    def __init__(self, what: str, hint: str, command: str) -> None:
        super().__init__(f"{what}\n  hint:     {hint}\n  look at:  {command}\n  then:     make demo")


class Cluster:
    """kubectl in the demo's namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        name = os.environ.get("CLUSTER")
        self.kubeconfig = other.kubeconfig(name) if name else paths.KUBECONFIG
        self.binary = tools.binary("kubectl")

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        """Return what kubectl prints; raise DemoError when it fails."""
        command = [str(self.binary), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        environment = {**os.environ, "KUBECACHEDIR": str(paths.CACHE / "kubectl")}
        done = subprocess.run(command, env=environment, input=given, capture_output=True, text=True)
        if done.returncode:
            raise DemoError(
                f"kubectl {' '.join(arguments)}: {done.stderr.strip()}", "is the cluster up?", "make cluster-status"
            )
        return done.stdout

    def apply(self, *objects: Manifest) -> None:
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self("apply", "--server-side", "--force-conflicts", "--filename=-", given=given)

    def get(self, *arguments: str) -> Manifest:
        """Return an object, or a list of them; empty if there is no such object."""
        said = self("get", "--ignore-not-found", "--output=json", *arguments)
        found: Manifest = json.loads(said) if said else {}
        return found

    def hint(self, arguments: str) -> str:
        """Return a command line that the user can run."""
        return f"KUBECONFIG={self.kubeconfig} {self.binary} --namespace={self.namespace} {arguments}"


@contextmanager
def stage(number: int, title: str) -> Iterator[None]:
    """Print what begins, and how long it took."""
    print(f"[{number}/{STEPS}] {title}", flush=True)
    start = time.monotonic()
    yield
    print(f"      done in {time.monotonic() - start:.0f} s", flush=True)


def manifest(name: str) -> Manifest:
    """Return a manifest of examples/demo with the trainer image that this cluster knows."""
    found: Manifest = yaml.safe_load((FILES / f"{name}.yaml").read_text())
    if found["kind"] == "Job":
        for container in found["spec"]["template"]["spec"]["containers"]:
            container["image"] = release.reference("trainer")
    return found


def devcluster(*arguments: str) -> None:
    """Run `python -m devcluster` with its output shown."""
    environment = {**os.environ, "PYTHONPATH": str(paths.REPOSITORY / "hack")}
    if subprocess.run([sys.executable, "-m", "devcluster", *arguments], env=environment).returncode:
        raise DemoError(f"devcluster {arguments[0]} failed", "the message above says why", "make cluster-logs")


def install(cluster: Cluster) -> None:
    """The operator runs, and the namespace with the demo's files and claim is there."""
    try:
        release.install(cluster.kubeconfig)
    except DevClusterError as error:
        raise DemoError(
            str(error), "see why its pods are not ready", cluster.hint("describe pods -n trl-system")
        ) from error
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace, "labels": labels}})
    scripts = {name: (FILES / name).read_text() for name in SCRIPTS}
    cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo-scripts"}, "data": scripts},
        manifest("claim"),
    )


def run_job(cluster: Cluster, job: Manifest, seconds: float, show: Callable[[str], None]) -> str:
    """Run a Kubernetes Job anew, show the last line of its log whenever it changes, and return the whole log."""
    name = f"job/{job['metadata']['name']}"
    # Waits for the pods too: a Job that was interrupted must not write beside its successor.
    cluster("delete", name, "--ignore-not-found", "--cascade=foreground", "--timeout=120s")
    cluster.apply(job)
    last, deadline = "", time.monotonic() + seconds
    while True:
        status = cluster.get(name).get("status", {})
        line = log_of(cluster, name, "--tail=1").strip()
        if line != last:
            show(line)
            last = line
        if status.get("succeeded"):
            return log_of(cluster, name)
        failed = any(c["type"] == "Failed" and c["status"] == "True" for c in status.get("conditions", []))
        if failed or time.monotonic() > deadline:
            what = "failed" if failed else f"has not ended after {seconds:.0f} s"
            tail = log_of(cluster, name, "--tail=15")
            raise DemoError(f"{name} {what}\n{tail}", "the end of its log is above", cluster.hint("describe jobs,pods"))
        time.sleep(1)


def log_of(cluster: Cluster, name: str, *arguments: str) -> str:
    """Return a Job's log; empty before its container runs."""
    try:
        return cluster("logs", name, *arguments)
    except DemoError:
        return ""


def row_of(status: Manifest, elapsed: float) -> list[str]:
    """Return the table's cells: phase, step, loss, margin, ETA, elapsed seconds."""
    progress = status.get("progress", {})
    metrics = {metric["name"]: metric["value"] for metric in progress.get("metrics", [])}
    numbers = [progress.get("loss"), metrics.get("rewards/margins")]
    return [
        status.get("phase", "Pending"),
        progress.get("display", "-"),
        *(f"{float(number):.4f}" if number is not None else "-" for number in numbers),
        progress.get("eta") or "-",
        f"{elapsed:.0f} s",
    ]


def train(cluster: Cluster) -> Manifest:
    """Run the DPOJob anew and show its progress as a table; return its last status."""
    cluster("delete", f"dpojob/{JOB}", "--ignore-not-found", "--cascade=foreground", "--timeout=180s")
    cluster.apply(manifest("dpojob"))
    print(f"\n      follow it elsewhere: {cluster.hint('get dpojobs --watch')}\n")
    print("      " + ROW.format("PHASE", "STEP", "LOSS", "MARGIN", "ETA", "ELAPSED"), flush=True)
    shown: list[str] = []
    start = changed = time.monotonic()
    while True:
        status: Manifest = cluster.get(f"dpojob/{JOB}").get("status", {})
        row = row_of(status, time.monotonic() - start)
        if row[:-1] != shown:
            clear_live()
            print("      " + ROW.format(*row), flush=True)
            shown, changed = row[:-1], time.monotonic()
        show_live(status, time.monotonic() - start)
        if status.get("phase") in ("Succeeded", "Failed", "Cancelled"):
            clear_live()
            return status
        if time.monotonic() - changed > STUCK_SECONDS:
            raise DemoError(
                f"dpojob/{JOB} made no progress for {STUCK_SECONDS} s: {explain(status)}",
                "its pods' events say what they wait for",
                cluster.hint("describe dpojobs,pods"),
            )
        time.sleep(1)


def explain(status: Manifest) -> str:
    """Return the messages of the conditions that hold a job back."""
    held = [c for c in status.get("conditions", []) if c["status"] == "False"]
    return "; ".join(f"{c['type']}: {c['reason']}: {c['message']}" for c in held) or "no condition says why"


def show_live(status: Manifest, elapsed: float) -> None:
    """On a terminal, show below the table what the job is doing right now."""
    if sys.stdout.isatty():
        activity = status.get("progress", {}).get("activity") or explain(status)
        print(f"\r\033[K      {elapsed:.0f} s  {activity[:100]}", end="", flush=True)


def clear_live() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")


def must_have_succeeded(cluster: Cluster, status: Manifest) -> None:
    if status["phase"] == "Succeeded":
        return
    failure = status.get("failure", {})
    what = f"dpojob/{JOB} ended {status['phase']}: {failure.get('reason')}: {failure.get('message')}"
    log = failure.get("log", "")
    selector = "--selector=trl-operator.io/job-name=demo"
    raise DemoError(
        f"{what}\n{log}".rstrip(), failure.get("hint", "see its log"), cluster.hint(f"logs {selector} --tail=100")
    )


def evaluate(cluster: Cluster, status: Manifest) -> dict[str, Manifest]:
    """Compare both models in the cluster; return the measures by `base` and `tuned`."""
    job = manifest("evaluate-job")
    environment = job["spec"]["template"]["spec"]["containers"][0]["env"]
    tuned = next(artifact["path"] for artifact in status["artifacts"] if artifact["type"] == "model")
    next(variable for variable in environment if variable["name"] == "TUNED")["value"] = tuned
    log = run_job(cluster, job, EVALUATION_SECONDS, lambda line: None)
    found = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    measures = {one["model"]: one for one in found}
    if missing := {"base", "tuned"} - set(measures):
        what = f"job/demo-evaluate succeeded without the measures of {', '.join(sorted(missing))} in its log"
        raise DemoError(what, "its log has one line of JSON for each model", cluster.hint("logs job/demo-evaluate"))
    return measures


def report(found: dict[str, Manifest]) -> None:
    """Print the measures before and after, and the answers to a few held-out prompts side by side."""
    base, tuned = found["base"], found["tuned"]
    lines = [
        (f"held-out pairs preferred ({base['pairs']})", "accuracy", "{:.0%}"),
        ("  mean log p(chosen) - log p(rejected)", "margin", "{:+.1f}"),
        ("  chosen replies' loss per token", "chosenNll", "{:.3f}"),
        (f"of {len(base['answers'])} sampled answers: well-formed", "wellFormed", "{:.0%}"),
        ("  well-formed, and the agent acts", "acting", "{:.0%}"),
    ]
    print(f"\n{'':<44} {'BEFORE':>8} {'AFTER':>8}")
    for title, key, form in lines:
        print(f"{title:<44} {form.format(base[key]):>8} {form.format(tuned[key]):>8}")
    answers = zip(base["answers"], tuned["answers"], strict=True)
    for before, after in list(answers)[:PROMPTS]:
        print()
        for message in before["prompt"]:
            print(f"{'customer' if message['role'] == 'user' else 'agent':>10}: {message['content']}")
        print(f"{'BEFORE':>10}: {before['answer']}\n{'AFTER':>10}: {after['answer']}")


def whereabouts(cluster: Cluster, status: Manifest) -> None:
    """Print where the tuned model is."""
    path = next(artifact["path"] for artifact in status["artifacts"] if artifact["type"] == "model")
    claim = cluster.get("pvc/demo-dpo")
    volume = cluster.get(f"pv/{claim['spec']['volumeName']}")["spec"]
    print(f"\nThe tuned model: claim {cluster.namespace}/demo-dpo, folder {path}")
    if folder := volume.get("hostPath", volume.get("local", {})).get("path"):
        print(f"on this node:    {Path(folder) / path}")


def main(namespace: str) -> None:
    own = not os.environ.get("CLUSTER")
    start = time.monotonic()
    with stage(1, "cluster: Kubernetes and the training-operator"):
        devcluster("up", "--yes")
    with stage(2, "images: trainer and operator" if own else f"images: the cluster's {release.reference('trainer')}"):
        if own:
            devcluster("images")
    cluster = Cluster(namespace)
    with stage(3, "operator: helm upgrade --install"):
        install(cluster)
    with stage(4, "base model and data: a Kubernetes Job, kept in the claim demo-base"):
        run_job(cluster, manifest("base-job"), BASE_SECONDS, lambda line: print(f"      {line}", flush=True))
    with stage(5, "DPO: kubectl apply of examples/demo/dpojob.yaml, 2 nodes"):
        status = train(cluster)
        must_have_succeeded(cluster, status)
    with stage(6, "comparison on held-out data: a Kubernetes Job"):
        found = evaluate(cluster, status)
    report(found)
    whereabouts(cluster, status)
    print(f"\nThe whole demo took {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespace", default="trl-demo", help="where the demo lives (default: trl-demo)")
    try:
        main(parser.parse_args().namespace)
    except DemoError as error:
        sys.exit(f"\ndemo: {error}")
    except DevClusterError as error:
        sys.exit(f"\ndemo: {error}\n  then:     make demo")
    except KeyboardInterrupt:
        print("\ndemo: interrupted; `make demo` again takes up what is there", file=sys.stderr)
        sys.exit(130)
