"""Writes the CustomResourceDefinitions and their reference: `python -m trl_operator.api.crd [--check]`; with --release
also RELEASED, what later CRDs are compared with."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from trl_operator.api import describe
from trl_operator.api.compatibility import essence
from trl_operator.api.kinds import KINDS, KindInfo
from trl_operator.api.reference import page
from trl_operator.api.rules import object_rules, spec_rules
from trl_operator.api.schema import Schema, structural_schema
from trl_operator.api.status import UNSEEN, JobStatus
from trl_operator.constants import GROUP, VERSION

ROOT = Path(__file__).parents[3]
CRDS = ROOT / "deploy/crds"
CHART_CRDS = ROOT / "deploy/helm/trl-operator/templates/crds"
REFERENCE = ROOT / "docs/reference"
RELEASED = ROOT / "tests/unit/released_crds.json"

CHART_HEAD = "{{- if .Values.crds.enabled }}\n"
CHART_TAIL = "{{- end }}\n"
CHART_ANNOTATIONS = """\
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""


def crd(info: KindInfo) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    names = {
        "kind": info.kind,
        "listKind": f"{info.kind}List",
        "plural": info.plural,
        "singular": info.singular,
        "categories": ["trl", "all"],
    }
    if info.short_names:
        names["shortNames"] = list(info.short_names)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{info.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": names,
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in info.columns],
                    "schema": {"openAPIV3Schema": _schema(info)},
                }
            ],
        },
    }


def _column(column: Any) -> dict[str, Any]:
    printed = {"name": column.name, "jsonPath": column.json_path, "type": column.type}
    return printed | ({"priority": column.priority} if column.priority else {})


def _schema(info: KindInfo) -> Schema:
    spec = structural_schema(info.spec, describe.of_spec)
    spec["x-kubernetes-validations"] = spec_rules(info.kind, info.spec)
    return {
        "type": "object",
        "description": info.spec.__doc__,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": structural_schema(JobStatus, describe.of_status) | {"default": {"observedGeneration": UNSEEN}},
        },
        "x-kubernetes-validations": object_rules(),
    }


def files() -> dict[Path, str]:
    """Return every generated file with its text: deploy/crds, the chart's copies and docs/reference."""
    result: dict[Path, str] = {}
    for info in KINDS.values():
        made = crd(info)
        text = yaml.safe_dump(made, sort_keys=False, width=120, allow_unicode=True)
        name = f"{GROUP}_{info.plural}.yaml"
        result[CRDS / name] = text
        result[CHART_CRDS / name] = chart_copy(text)
        trained = [field.alias or name for name, field in info.training.model_fields.items()]
        result[REFERENCE / f"{info.singular}.md"] = page(made, first=trained)
    return result


def chart_copy(text: str) -> str:
    """Return a CRD as a template of the chart, switched by crds.enabled and crds.keep."""
    assert "{{" not in text, "a CRD must not contain template syntax"
    head, metadata, rest = text.partition("metadata:\n")
    return f"{CHART_HEAD}{head}{metadata}{CHART_ANNOTATIONS}{rest}{CHART_TAIL}"


def main(arguments: list[str]) -> int:
    if "--release" in arguments:
        RELEASED.write_text(json.dumps({kind: essence(crd(info)) for kind, info in KINDS.items()}) + "\n")
    stale = {path: text for path, text in files().items() if not path.exists() or path.read_text() != text}
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `make generate`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
