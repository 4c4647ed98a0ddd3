"""What an attempt is made of in the cluster: created once, in order, and taken away when nothing needs it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trl_contract.jobfile import AttemptFile
from trl_operator.api.job import Job
from trl_operator.backend import BACKENDS, Backend, child_from, resource_of
from trl_operator.blockers import claim_blocker, name_blocker
from trl_operator.constants import ANNOTATION_BOOST, MANAGER_BOOST
from trl_operator.errors import ApiError, Refused
from trl_operator.kube import CLAIMS, CONFIG_MAPS, NETWORK_POLICIES, WORKLOADS, Kube
from trl_operator.lease import Lease
from trl_operator.plan.acceptance import Blocker
from trl_operator.plan.admission import Admission
from trl_operator.plan.observation import Child, controller_uid
from trl_operator.render.manifests import Installation, claim, config_map, network_policy
from trl_operator.render.run import Pinned
from trl_operator.resource import Resource
from trl_operator.store.needs import Needs
from trl_operator.store.store import Store

Obj = dict[str, Any]


class Attempts:
    """Starts attempts; may be killed between any two requests, and goes on from there."""

    def __init__(
        self, kube: Kube, store: Store, needs: Needs, lease: Lease, installation: Callable[[], Installation]
    ) -> None:
        self._kube = kube
        self._store = store
        self._needs = needs
        self._lease = lease
        self._installation = installation

    async def delete(self, child: Child) -> None:
        """Delete a workload and its pods."""
        self._lease.check()
        if not await self._kube.delete(resource_of(child), child.job[1], child.name, child.uid):
            # The watch has missed its end, and would not tell of it before everything is listed again.
            self._store.forget_child(child)

    async def boost(self, child: Child, admission: Admission, wanted: str) -> None:
        """Have Kueue add this to the priority of an attempt's Workload; empty: nothing."""
        if wanted == admission.boost:
            return
        self._lease.check()
        # With the uid, since one that is gone would be created anew.
        metadata: Obj = {"name": admission.name, "namespace": child.job[1], "uid": admission.uid}
        if wanted:
            metadata["annotations"] = {ANNOTATION_BOOST: wanted}
        body = {"apiVersion": f"{WORKLOADS.group}/{WORKLOADS.version}", "kind": "Workload", "metadata": metadata}
        await self._kube.apply(WORKLOADS, child.job[1], body, MANAGER_BOOST)

    async def start(self, pinned: Pinned, file: AttemptFile) -> Child | Blocker:
        """Create what the attempt needs, its workload last; or return what stands against it. Raises ApiError, which is
        Refused if the status is to tell it."""
        attempt, job, backend = file.attempt, pinned.job, BACKENDS[pinned.run.backend]
        installation = self._installed(pinned)
        await self._clear(job, attempt, backend)
        wanted = [*backend.beside(job, attempt, installation), *_mounted(pinned, file, installation)]
        if job.cluster.storage.size and not self._needs.claim(job.namespace, job.storage_claim):
            wanted.insert(0, (CLAIMS, claim(job)))
        answers = await asyncio.gather(*(self._create(job, *each) for each in wanted), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, Blocker):
                return answer
        manifest = backend.manifest(job, attempt, installation)
        self._store.expect_child(job.namespace, manifest["metadata"]["name"])
        try:
            made = await self._create(job, backend.RESOURCE, manifest)
        except Refused as error:
            # Not worth telling: it is tried again at once.
            raise ApiError(409, error.message) if backend.is_early(error.message) else error from error
        if isinstance(made, Blocker):
            return made
        self._store.put_child(made)
        child = child_from(made)
        assert child is not None, "it is controlled by the job"
        return child

    async def restore(self, pinned: Pinned, file: AttemptFile) -> None:
        """Create again what an attempt's pods mount, and somebody has deleted before they did. Raises Refused."""
        for resource, manifest in _mounted(pinned, file, self._installed(pinned)):
            try:
                await self._post(pinned.job, resource, manifest)
            except Refused as error:
                if error.status != 409:
                    raise

    def _installed(self, pinned: Pinned) -> Installation:
        return replace(self._installation(), trainer_image=pinned.run.image)

    async def _create(self, job: Job, resource: Resource, manifest: Obj) -> Obj | Blocker:
        """Create an object, or return the job's own of that name; a Blocker if somebody else has the name.

        Called before the attempt has a workload, so what is there and says something else is made anew. Nothing is
        patched: the right to patch any ConfigMap of a namespace is worth more than all that is in ours.
        """
        try:
            return await self._post(job, resource, manifest)
        except Refused as error:
            # A quota that is used up refuses what is there already, too.
            if error.status not in (403, 409):
                raise
            found = await self._kube.get(resource, job.namespace, manifest["metadata"]["name"])
            if found is None:
                raise
        if resource == CLAIMS:
            return await claim_blocker(self._kube, job, found) or found
        if blocker := await name_blocker(self._kube, job, resource, found):
            return blocker
        if controller_uid(found["metadata"]) == job.uid and not _differs(resource, found, manifest):
            return found
        self._lease.check()
        await self._kube.delete(resource, job.namespace, found["metadata"]["name"], found["metadata"]["uid"])
        return await self._post(job, resource, manifest)

    async def _post(self, job: Job, resource: Resource, manifest: Obj) -> Obj:
        self._lease.check()
        try:
            return await self._kube.create(resource, manifest, job.namespace)
        except ApiError as error:
            raise Refused(f"{manifest['kind']} {manifest['metadata']['name']}", error) from error

    async def _clear(self, job: Job, attempt: int, backend: Backend) -> None:
        """Take away what earlier attempts have left beside their workloads. The last one's stays as long as its pods,
        which can still be looked at."""
        kept = {child.attempt for child in self._store.children(job.uid, job.namespace)}
        for earlier in range(max(attempt - 2, 0), attempt):
            if earlier == attempt - 1 and earlier in kept:
                continue
            for resource in (NETWORK_POLICIES, CONFIG_MAPS, *backend.BESIDE):
                found = await self._kube.get(resource, job.namespace, job.child_name(earlier))
                if found is not None and controller_uid(found["metadata"]) == job.uid:
                    self._lease.check()
                    await self._kube.delete(resource, job.namespace, job.child_name(earlier), found["metadata"]["uid"])


def _mounted(pinned: Pinned, file: AttemptFile, installation: Installation) -> list[tuple[Resource, Obj]]:
    """Return what an attempt's pods mount, and their policy; the job's run too unless that is known to be."""
    wanted = [] if pinned.manifest is None else [(CONFIG_MAPS, pinned.manifest)]
    return [
        *wanted,
        (NETWORK_POLICIES, network_policy(pinned.job, file.attempt)),
        (CONFIG_MAPS, config_map(pinned.job, file, installation)),
    ]


def _differs(resource: Resource, found: Obj, manifest: Obj) -> bool:
    """Whether what is stored is not what it should be. A workload never is compared."""
    if part := {CONFIG_MAPS: "data", NETWORK_POLICIES: "spec"}.get(resource):
        return bool(found.get(part) != manifest[part])
    beside = any(resource in backend.BESIDE for backend in BACKENDS.values())
    return beside and not _says(found["spec"], manifest["spec"])


def _says(found: Any, wanted: Any) -> bool:
    """Whether what is stored says all that is wanted; the API server adds defaults to it."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_says(found.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        same = isinstance(found, list) and len(found) == len(wanted)
        return same and all(_says(one, other) for one, other in zip(found, wanted, strict=True))
    return bool(found == wanted)
