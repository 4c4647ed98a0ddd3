"""No CRD breaks what was made for the last one, but for what docs/compatibility.md names."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from trl_contract.base import KINDS
from trl_operator.api.compatibility import breaks, essence
from trl_operator.api.crd import RELEASED, ROOT, crd
from trl_operator.api.kinds import KINDS as INFOS

Node = dict[str, Any]

MADE = {kind: crd(INFOS[kind]) for kind in KINDS}
POLICY = (ROOT / "docs/compatibility.md").read_text()


def test_what_is_new_breaks_nothing_but_what_the_policy_names() -> None:
    released = json.loads(RELEASED.read_text())
    found = {f"{kind} {each}" for kind in KINDS for each in breaks(released[kind], MADE[kind])}
    rows = re.findall(r"^\| (\w+) \| `(.+)` \| .+ \|$", POLICY, re.MULTILINE)
    named = {f"{kind} {each}" for whose, each in rows for kind in (KINDS if whose == "all" else [whose])}
    remedy = "say in the table of docs/compatibility.md what becomes of stored jobs, or keep what was"
    assert found - named == set(), remedy
    assert named - found == set(), "rows of docs/compatibility.md that break nothing: remove them"


def field(made: Node, path: str) -> Node:
    [version] = made["spec"]["versions"]
    node = version["schema"]["openAPIV3Schema"]
    for name in path.split("."):
        node = node.get("items", node)["properties"][name]
    return node  # type: ignore[no-any-return]


def put(path: str, **keys: Any) -> Callable[[Node], None]:
    """A change of a field's schema; None removes a key."""

    def change(made: Node) -> None:
        node = field(made, path)
        node |= keys
        for key in [key for key, value in keys.items() if value is None]:
            del node[key]

    return change


def drop(path: str) -> Callable[[Node], None]:
    parent, _, name = path.rpartition(".")

    def change(made: Node) -> None:
        del field(made, parent)["properties"][name]

    return change


def add(path: str, new: Node, *, required: bool = False, rule: str = "") -> Callable[[Node], None]:
    parent, _, name = path.rpartition(".")

    def change(made: Node) -> None:
        node = field(made, parent)
        node["properties"][name] = new
        if required:
            node["required"] = [*node.get("required", []), name]
        if rule:
            node.setdefault("x-kubernetes-validations", []).append({"rule": rule, "message": "no"})

    return change


def rule(path: str, rule: str) -> Callable[[Node], None]:
    def change(made: Node) -> None:
        field(made, path).setdefault("x-kubernetes-validations", []).append({"rule": rule, "message": "no"})

    return change


def columns(change: Callable[[list[Node]], Any]) -> Callable[[Node], None]:
    return lambda made: change(made["spec"]["versions"][0]["additionalPrinterColumns"])


TRAINING = "spec.training"
BAD: list[tuple[Callable[[Node], None], str]] = [
    (drop(f"{TRAINING}.maxSteps"), "spec.training.maxSteps: removed"),
    (drop("status.progress.eta"), "status.progress.eta: removed"),
    (put(f"{TRAINING}.maxSteps", type="string"), "spec.training.maxSteps: type was integer, is string"),
    (put(f"{TRAINING}.maxSteps", format="int64"), "spec.training.maxSteps: format was int32, is int64"),
    (put("spec.storage.size", **{"x-kubernetes-int-or-string": None}), "x-kubernetes-int-or-string was True, is none"),
    (put("status.checkpoints", **{"x-kubernetes-list-map-keys": ["path"]}), "list-map-keys was ['step'], is ['path']"),
    (put(f"{TRAINING}.weightDecay", maximum=0.5), "spec.training.weightDecay: maximum was 1, is 0.5"),
    (put(f"{TRAINING}.maxSteps", minimum=2), "spec.training.maxSteps: minimum was 1, is 2"),
    (put(f"{TRAINING}.weightDecay", exclusiveMaximum=True), "weightDecay: maximum 1 itself is refused"),
    (put("spec.model.hub.repo", maxLength=100), "spec.model.hub.repo: maxLength was 200, is 100"),
    (put("spec.model.hub.repo", pattern="^a"), "is ^a"),
    (put("spec.env", maxItems=32), "spec.env: maxItems was 64, is 32"),
    (put("spec.nodeSelector", maxProperties=8), "spec.nodeSelector: maxProperties was 16, is 8"),
    (put("spec.peft.modulesToSave", minItems=2), "spec.peft.modulesToSave: minItems was 1, is 2"),
    (put("spec.env.name", minLength=2), "spec.env[].name: minLength was 1, is 2"),
    (put("spec.peft.method", enum=["lora", "none"]), "spec.peft.method: value qlora is refused"),
    (put("spec.sft.lossType", enum=["nll", "dft", "x"], default="dft"), "sft.lossType: default was nll, is dft"),
    (put("spec.image", enum=["a"]), "spec.image: only ['a'] are taken"),
    (
        put("spec.runPolicy.maxRestarts", default=None, description="Words."),
        "spec.runPolicy.maxRestarts: default was 3, is none",
    ),
    (put("spec.storage.retain", default=True), "spec.storage.retain: default was none, is True"),
    (put("spec.peft.r", description="Rank of the adapter. 1 to 1024. Default: 8."), "peft.r: default was 16, is 8"),
    (put("spec.model.hub", required=["repo", "revision"]), "spec.model.hub.revision: now required"),
    (add("spec.peft.rank", {"type": "integer"}, required=True), "spec.peft.rank: now required"),
    (rule("spec.peft", "self.r < 512"), "spec.peft: new rule: no"),
    (rule("spec", "!has(self.image) || self.image != 'a'"), "spec: new rule: no"),
    (rule("spec.runPolicy", "self.maxRestarts == oldSelf.maxRestarts"), "spec.runPolicy: new rule: no"),
    (add("spec.peft.on", {"type": "boolean", "default": True}, rule="!self.on || self.r > 8"), "peft: new rule: no"),
    (add("spec.model.id", {"type": "string"}, rule="has(self.id) || has(self.hub)"), "spec.model: new rule: no"),
    (columns(lambda all: all.pop(2)), "column LOSS: removed"),
    (columns(lambda all: all[2].update(priority=1)), "column LOSS: now with -o wide only"),
    (lambda made: made["spec"]["names"].update(shortNames=[]), "names.shortNames: sft is removed"),
    (lambda made: made["spec"]["names"].update(plural="sfts"), "names.plural: was sftjobs, is sfts"),
    (lambda made: made["spec"].update(scope="Cluster"), "scope: was Namespaced, is Cluster"),
    (lambda made: made["spec"]["versions"][0].update(served=False), "version v1alpha1: no longer served"),
]


@pytest.mark.parametrize(("change", "says"), BAD, ids=[says for _, says in BAD])
def test_each_kind_of_break_is_named(change: Callable[[Node], None], says: str) -> None:
    old, new = essence(MADE["SFTJob"]), deepcopy(MADE["SFTJob"])
    change(new)
    [found] = breaks(old, new)
    assert says in found


GOOD: list[Callable[[Node], None]] = [
    add("spec.peft.rank", {"type": "integer"}),
    add("spec.peft.rank", {"type": "integer", "default": 8}, required=True),
    add("spec.peft.rank", {"type": "integer"}, rule="!has(self.rank) || self.rank > self.r"),
    add("spec.peft.on", {"type": "boolean", "default": False}, rule="!self.on || self.r > 8"),
    add("spec.preset", {"type": "string"}, rule="has(self.preset) == has(oldSelf.preset)"),
    put("spec.peft.method", enum=["lora", "qlora", "none", "oft"]),
    put("spec.peft.method", enum=None),
    put(f"{TRAINING}.weightDecay", maximum=2.0, minimum=-1.0, description="Other words. 0 to 2. Default: 0.01."),
    put("spec.model.hub.repo", pattern=None, maxLength=300),
    put("spec.peft", **{"x-kubernetes-validations": []}),
    columns(lambda all: all.append({"name": "NEW", "jsonPath": ".status.new", "type": "string"})),
    columns(lambda all: all.reverse()),
]


@pytest.mark.parametrize("change", GOOD)
def test_what_adds_breaks_nothing(change: Callable[[Node], None]) -> None:
    old, new = MADE["SFTJob"], deepcopy(MADE["SFTJob"])
    change(new)
    assert new != old
    assert breaks(essence(old), new) == []
