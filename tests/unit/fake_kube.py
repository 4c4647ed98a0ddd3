"""An API server in memory, as far as the reconciler and the receiver of one job need it."""

from collections.abc import Callable
from typing import Any

from trl_operator.errors import ApiError
from trl_operator.kube import TOKEN_REVIEWS, Resource

Obj = dict[str, Any]
Place = tuple[str, str, str]


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
        self.version = 100

    def put(self, plural: str, obj: Obj) -> Obj:
        """Store an object as its next version."""
        self.version += 1
        metadata = {"namespace": "team", **obj["metadata"], "resourceVersion": str(self.version)}
        stored = {**obj, "metadata": metadata}
        self.objects[plural, metadata["namespace"], metadata["name"]] = stored
        return stored

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj | None:
        return self.objects.get((resource.plural, namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, selector: str = "", fields: str = ""
    ) -> tuple[list[Obj], int]:
        self.refuse_list(resource.plural, namespace)
        wanted = dict(term.split("=", 1) for term in selector.split(",") if "=" in term)
        found = [
            obj for (plural, place, _), obj in self.objects.items() if (plural, place) == (resource.plural, namespace)
        ]
        return [obj for obj in found if wanted.items() <= obj["metadata"].get("labels", {}).items()], self.version

    async def create(self, resource: Resource, body: Obj, namespace: str | None = None) -> Obj:
        """Store an object; a token is that of the pod whose uid it is."""
        if resource == TOKEN_REVIEWS:
            user = {"extra": {"authentication.kubernetes.io/pod-uid": [body["spec"]["token"]]}}
            return {"status": {"authenticated": True, "audiences": body["spec"]["audiences"], "user": user}}
        self.refuse_object(body)
        self.writes.append(("create", resource.plural))
        metadata = {"uid": f"{body['metadata']['name']}-uid", **body["metadata"]}
        return self.put(resource.plural, {**body, "metadata": metadata})

    async def apply(
        self, resource: Resource, namespace: str, body: Obj, manager: str, subresource: str | None = None
    ) -> Obj:
        """Merge what a manager says of a status; of a whole object it is the only manager."""
        known = self.objects.get((resource.plural, namespace, body["metadata"]["name"]))
        if subresource is not None:
            assert known is not None
            if body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
                raise ApiError(409, "the object has been modified")
            self.refuse(body["status"])
            before = known.get("status", {})
            effective = {**before.get("effective", {}), **body["status"].get("effective", {})}
            body = {**known, "status": {**before, **body["status"], **({"effective": effective} if effective else {})}}
        else:
            self.refuse_object(body)
        self.writes.append((manager, resource.plural))
        return self.put(resource.plural, body)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> bool:
        found = self.objects.get((resource.plural, namespace, name))
        if found is None or found["metadata"]["uid"] != uid:
            return False
        self.writes.append(("delete", resource.plural))
        del self.objects[resource.plural, namespace, name]
        return True
