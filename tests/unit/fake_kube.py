"""An API server in memory, as far as the reconciler and the receiver of one job need it."""

import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any

from trl_operator.errors import ApiError
from trl_operator.kube import TOKEN_REVIEWS, Page, Resource
from trl_operator.receiver.tokens import claims

Obj = dict[str, Any]
Place = tuple[str, str, str]


def token(pod_uid: str, audience: str, expires: float = 4e9, signature: str = "good") -> str:
    """A service-account token that is bound to a pod."""
    payload = {"aud": [audience], "exp": expires, "kubernetes.io": {"pod": {"uid": pod_uid}}}
    parts = (urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "R"}, payload))
    return ".".join([*parts, signature])


class FakeKube:
    """Keeps objects by plural, namespace and name.

    `refuse` may raise an ApiError for a status that is applied, `refuse_object` for an object that is created, and
    `refuse_list` for a list of a resource in a namespace.
    """

    def __init__(self) -> None:
        self.objects: dict[Place, Obj] = {}
        self.writes: list[tuple[str, str]] = []
        """Manager or verb, and plural, of every write that was accepted."""
        self.refuse: Callable[[Obj], None] = lambda _: None
        self.refuse_object: Callable[[Obj], None] = lambda _: None
        self.refuse_list: Callable[[str, str | None], None] = lambda *_: None
        self.unserved: set[str] = set()
        """Plurals of kinds that discovery does not name."""
        self.version = 100
        self._said: dict[tuple[str, str, str, str], set[str]] = {}
        """Fields of the status that each manager has written."""
        self.reviews = 0

    def put(self, plural: str, obj: Obj) -> Obj:
        """Store an object as its next version."""
        self.version += 1
        metadata = {"namespace": "team", **obj["metadata"], "resourceVersion": str(self.version)}
        stored = {**obj, "metadata": metadata}
        self.objects[plural, metadata["namespace"], metadata["name"]] = stored
        return stored

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj | None:
        return self.objects.get((resource.plural, namespace, name))

    async def serves(self, resource: Resource) -> bool:
        return resource.plural not in self.unserved

    async def list(
        self, resource: Resource, namespace: str | None = None, selector: str = "", fields: str = ""
    ) -> tuple[list[Obj], int]:
        self.refuse_list(resource.plural, namespace)
        wanted = dict(term.split("=", 1) for term in selector.split(",") if "=" in term)
        found = [
            obj for (plural, place, _), obj in self.objects.items() if (plural, place) == (resource.plural, namespace)
        ]
        return [obj for obj in found if wanted.items() <= obj["metadata"].get("labels", {}).items()], self.version

    async def pages(
        self, resource: Resource, namespace: str | None = None, selector: str = "", fields: str = ""
    ) -> AsyncIterator[Page]:
        yield await self.list(resource, namespace, selector, fields)

    async def create(self, resource: Resource, body: Obj, namespace: str | None = None) -> Obj:
        """Store an object; a token is what it says, but for one with a bad signature."""
        if resource == TOKEN_REVIEWS:
            self.reviews += 1
            said = claims(body["spec"]["token"])
            if said is None or not body["spec"]["token"].endswith(".good"):
                return {"status": {"error": "invalid token"}}
            user = {"extra": {"authentication.kubernetes.io/pod-uid": [said.pod_uid]}}
            return {"status": {"authenticated": True, "audiences": body["spec"]["audiences"], "user": user}}
        self.refuse_object(body)
        if (resource.plural, body["metadata"].get("namespace", namespace), body["metadata"]["name"]) in self.objects:
            raise ApiError(409, "already exists")
        self.writes.append(("create", resource.plural))
        metadata = {"uid": f"{body['metadata']['name']}-uid", **body["metadata"]}
        return self.put(resource.plural, {**body, "metadata": metadata})

    async def apply(
        self, resource: Resource, namespace: str, body: Obj, manager: str, subresource: str | None = None
    ) -> Obj:
        """Merge what a manager says of a status, without what it has ceased to say; of a whole object it is the only
        manager."""
        known = self.objects.get((resource.plural, namespace, body["metadata"]["name"]))
        if subresource is not None:
            assert known is not None
            if body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
                raise ApiError(409, "the object has been modified")
            self.refuse(body["status"])
            place = (resource.plural, namespace, body["metadata"]["name"], manager)
            ceased = self._said.get(place, set()) - body["status"].keys()
            self._said[place] = set(body["status"])
            before = {name: value for name, value in known.get("status", {}).items() if name not in ceased}
            effective = {**before.get("effective", {}), **body["status"].get("effective", {})}
            body = {**known, "status": {**before, **body["status"], **({"effective": effective} if effective else {})}}
        else:
            self.refuse_object(body)
        self.writes.append((manager, resource.plural))
        return self.put(resource.plural, body)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str, version: str = "") -> bool:
        found = self.objects.get((resource.plural, namespace, name))
        if found is None or found["metadata"]["uid"] != uid:
            return False
        if version not in ("", found["metadata"]["resourceVersion"]):
            raise ApiError(409, "the object has been modified")
        self.writes.append(("delete", resource.plural))
        del self.objects[resource.plural, namespace, name]
        return True
