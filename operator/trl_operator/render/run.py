"""What a run is pinned to: the ConfigMap that all attempts share, and what the status says of it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from trl_contract.cluster import BackendName
from trl_contract.resolve import resolve
from trl_operator.api.defaults import RESOLVED, resolved
from trl_operator.api.job import Job
from trl_operator.api.status import Run
from trl_operator.plan.upstream import Results, refs, with_results
from trl_operator.render.manifests import job_file, metadata_of
from trl_operator.render.volumes import inline_rows

Obj = dict[str, Any]


@dataclass(frozen=True)
class Pinned:
    """A run as all its attempts see it, whatever becomes of the operator, its image and the jobs that it builds on."""

    job: Job
    """With the results of earlier jobs in place of their names."""
    run: Run
    manifest: Obj | None = None
    """The run's ConfigMap, if it has yet to be made."""


def pin(job: Job, results: Results, trainer_image: str, backend: BackendName = "pytorchjob") -> Pinned:
    """Return the run of a job, which has its jobDefaults, that uses these results of earlier jobs; `trainer_image` is
    for one that names none.

    Its ConfigMap holds the job file with every default resolved, the rows of the spec itself, and what of the cluster's
    part is of jobDefaults. It never changes.
    Nothing is indented: rows with many small values would grow to several times what check_spec has measured.
    """
    job = with_results(job, results)
    file = resolve(job_file(job))
    digests = {
        file.paths.at(upstream.place): result.ref.digest for upstream, result in results.items() if result.ref.digest
    }
    file = file.model_copy(update={"digests": digests or None})
    data = {"job.json": json.dumps(file.to_wire(), ensure_ascii=False)}
    for name, rows in inline_rows(job).items():
        data[name] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if added := resolved(job, job.offered):
        data[RESOLVED] = added
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata_of(job, job.base_name),
        "immutable": True,
        "data": data,
    }
    image = job.cluster.image or trainer_image
    run = Run(image=image, backend=backend, upstreams=refs(results), digest=digest(data))
    return Pinned(job, run, manifest)


def digest(data: dict[str, str]) -> str:
    """Return the digest of a run's ConfigMap."""
    return "sha256:" + hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
