"""The API server: plain dicts in and out. The only module that imports `kubernetes`."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import load_incluster_config, load_kube_config

from trl_operator.api.kinds import KINDS
from trl_operator.constants import GROUP, MANAGER_OBJECTS, VERSION
from trl_operator.errors import ApiError
from trl_operator.resource import Resource

Obj = dict[str, Any]
Page = tuple[list[Obj], int]
"""Objects, and the version of the list that they are from."""

READ_SECONDS = 30.0
WRITE_SECONDS = 4.0
"""A write that takes longer is given up: whoever leads by then must not be surprised by it."""
PAGE = 100
"""Objects of a list that are in memory at a time; a job may be 400 KiB."""
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
CONNECTIONS = 64


PODS: Final = Resource("", "v1", "pods")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps")
CLAIMS: Final = Resource("", "v1", "persistentvolumeclaims")
SECRETS: Final = Resource("", "v1", "secrets")
EVENTS: Final = Resource("", "v1", "events")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases")
NETWORK_POLICIES: Final = Resource("networking.k8s.io", "v1", "networkpolicies")
TOKEN_REVIEWS: Final = Resource("authentication.k8s.io", "v1", "tokenreviews")
WORKLOADS: Final = Resource("kueue.x-k8s.io", "v1beta2", "workloads")
"""Kueue's: one of each workload that it manages."""
JOBS: Final[dict[str, Resource]] = {kind: Resource(GROUP, VERSION, info.plural) for kind, info in KINDS.items()}


class Kube:
    """A pool of connections to the API server. Every call has a timeout; every failure is an ApiError."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls, connections: int = CONNECTIONS) -> Self:
        """Connect as the pod's service account, or as KUBECONFIG says, with at most so many connections."""
        configuration = Configuration()
        if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            load_incluster_config(client_configuration=configuration)
        else:
            await load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
        configuration.connection_pool_maxsize = connections
        # Else each request looks for a .netrc and for proxies in a thread of its own, a fifth of all the time we take.
        configuration.client_session_kwargs = {"trust_env": False}
        client = ApiClient(configuration)
        client.user_agent = MANAGER_OBJECTS
        return cls(client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj | None:
        """Return the object as it is now; None if there is none."""
        try:
            return await self._request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def serves(self, resource: Resource) -> bool:
        """Return whether discovery names a resource of an API group, which is later than it can be listed."""
        try:
            groups = (await self._request("GET", "/apis"))["groups"]
            found = await self._request("GET", f"/apis/{resource.group}/{resource.version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        named = any(resource.plural == each["name"] for each in found["resources"])
        return named and any(resource.group == group["name"] for group in groups)

    async def version(self, resource: Resource, namespace: str, name: str) -> str | None:
        """Return the resourceVersion of an object, which may be big, without the rest of it; None if there is none."""
        try:
            found = await self._request("GET", resource.path(namespace, name), accept=METADATA)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return str(found["metadata"]["resourceVersion"])

    async def list(
        self, resource: Resource, namespace: str | None = None, selector: str = "", fields: str = ""
    ) -> tuple[list[Obj], int]:
        """Return all objects that the label and field selectors choose, and the version of the list."""
        items: list[Obj] = []
        version = 0
        async for page, listed in self.pages(resource, namespace, selector, fields):
            items += page
            version = listed
        return items, version

    async def pages(
        self, resource: Resource, namespace: str | None = None, selector: str = "", fields: str = ""
    ) -> AsyncIterator[Page]:
        """Yield the objects that the label and field selectors choose, page by page, with the version of the list."""
        query = {"limit": str(PAGE), "labelSelector": selector, "fieldSelector": fields}
        query = {name: value for name, value in query.items() if value}
        while True:
            page = await self._request("GET", resource.path(namespace), query=query)
            kind = page["kind"].removesuffix("List")
            metadata = page["metadata"]
            items = [{"apiVersion": page["apiVersion"], "kind": kind, **item} for item in page["items"]]
            yield items, int(metadata["resourceVersion"])
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def create(self, resource: Resource, body: Obj, namespace: str | None = None) -> Obj:
        """Create an object; status 409 if its name is taken."""
        return await self._request("POST", resource.path(namespace), body)

    async def replace(self, resource: Resource, namespace: str, name: str, body: Obj) -> Obj:
        """Replace an object; status 409 if it has changed since `body` was read."""
        return await self._request("PUT", resource.path(namespace, name), body)

    async def apply(
        self, resource: Resource, namespace: str, body: Obj, manager: str, subresource: str | None = None
    ) -> Obj:
        """Server-side apply, taking over the fields of `body`."""
        path = resource.path(namespace, body["metadata"]["name"], subresource)
        query = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, body, query, "application/apply-patch+yaml")

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str, version: str = "") -> bool:
        """Delete this very object in the background, with a version only in this state; return False if it was gone
        already. Raises status 409 if it has changed since that version."""
        preconditions = {"uid": uid} | ({"resourceVersion": version} if version else {})
        body = {"propagationPolicy": "Background", "preconditions": preconditions}
        try:
            await self._request("DELETE", resource.path(namespace, name), body)
        except ApiError as error:
            if error.status != 404 and (error.status != 409 or version):
                raise
            return False
        return True

    async def _request(
        self,
        method: str,
        path: str,
        body: Obj | None = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Obj:
        seconds = READ_SECONDS if method == "GET" else WRITE_SECONDS
        headers = {"Accept": accept, "Content-Type": content_type}
        url = path + (f"?{urlencode(query)}" if query else "")
        try:
            # The body is plain already: the client would only copy it, part by part.
            method, url, headers, *_ = await self._client.param_serialize(
                method, url, header_params=headers, auth_settings=["BearerToken"]
            )
            async with asyncio.timeout(seconds):
                response = await self._client.call_api(method, url, headers, body, _request_timeout=seconds)
                data = await response.read()
        except (aiohttp.ClientError, ApiException, OSError, TimeoutError) as error:
            raise ApiError(0, repr(error), request=f"{method} {path}") from error
        try:
            answer: Obj = (
                json.loads(data) if data.startswith(b"{") else {"message": data.decode(errors="replace")[:300]}
            )
        except ValueError as error:
            raise ApiError(0, f"an answer that ends too early: {error}", request=f"{method} {path}") from error
        if response.status >= 400:
            wait = response.headers.get("Retry-After", "0")
            retry_after = float(wait) if wait.isdigit() else 0.0
            raise ApiError(response.status, answer.get("message", ""), retry_after, request=f"{method} {path}")
        return answer
