"""`python -m trl_trainer run` of several jobs: each after those whose results it uses."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from trl_contract.report import EXIT_CODES, USER_ERROR_EXIT_CODE
from trl_contract.upstreams import upstreams
from trl_trainer import local
from trl_trainer.errors import TrainerError, UserError
from trl_trainer.local.resource import Key, Resource
from trl_trainer.local.run import run, user_variables

STOPPED = EXIT_CODES["Preempted"]
"""Exit code of a job that the user has stopped: no other one begins."""


def run_all(resources: Sequence[Resource], places: local.Places) -> int:
    """Train all jobs and return the first exit code that is not 0. One that has left its model already is left alone;
    one that fails stops only those that use its result. UserError before the first starts, about all of them."""
    if len(resources) == 1:
        return run(resources[0], places)
    ordered = in_order(resources)
    _check(ordered, places)
    ends: dict[Key, str] = {}
    results: dict[Key, Path | None] = {}
    first, stopped, given = 0, False, frozenset(os.environ)
    for resource in ordered:
        lost = [f"{key[0]} {key[2]}" for key in needs(resource) if key in ends and key not in results]
        if lost or stopped:
            ends[resource.key] = f"not run, since {' and '.join(lost) or 'another one'} did not succeed"
            continue
        print(f"\n== {resource.kind} {resource.name}", flush=True)
        # A hub that was away for one job is asked again for the next.
        for name in os.environ.keys() - given:
            del os.environ[name]
        code = _run(resource, replace(places, results=results), results)
        ends[resource.key] = "Succeeded" if code == 0 else f"ended with exit code {code}"
        first, stopped = first or code, code == STOPPED
    print("\n== all jobs")
    for (kind, _, name), end in ends.items():
        print(f"  {kind} {name}: {end}")
    return first


def in_order(resources: Iterable[Resource]) -> list[Resource]:
    """Return each job after those whose results it uses, else in their order; UserError if one waits for itself."""
    left, found = list(resources), []
    while left:
        waiting = {resource.key for resource in left}
        ready = next((resource for resource in left if not waiting & set(needs(resource))), None)
        if ready is None:
            names = ", ".join(f"{resource.kind} {resource.name}" for resource in left)
            raise UserError("InvalidSpec", f"fromJob: {names} wait for each other: give one of them another source")
        left.remove(ready)
        found.append(ready)
    return found


def needs(resource: Resource) -> list[Key]:
    """Return the jobs whose results a job uses."""
    return [(upstream.kind, resource.namespace, upstream.name) for upstream in upstreams(resource.training)]


def _check(resources: Sequence[Resource], places: local.Places) -> None:
    """UserError for whatever is missing of any job, but for the results of the others."""
    wrong = []
    awaited: dict[Key, Path | None] = dict.fromkeys(resource.key for resource in resources)
    for resource in resources:
        try:
            local.check(resource, replace(places, results=awaited), local.num_gpus())
            user_variables(resource)
        except UserError as error:
            wrong += [f"{resource.kind} {resource.name}: {line}" for line in error.message.splitlines()]
    if wrong:
        raise UserError("InvalidSpec", "\n".join(wrong))


def _run(resource: Resource, places: local.Places, results: dict[Key, Path | None]) -> int:
    """Train one job; put its model into `results` if it leaves one."""
    try:
        job = local.here(resource, places, local.num_gpus())
        final = Path(job.paths.storage) / job.uid / "final"
        code = 0
        if final.is_dir():
            print(f"done already: {final}")
        else:
            code = run(resource, places)
    except TrainerError as error:
        print(f"error: {error.reason}: {error.message}", file=sys.stderr)
        return EXIT_CODES.get(error.reason, USER_ERROR_EXIT_CODE)
    if code == 0:
        results[resource.key] = final
    return code
