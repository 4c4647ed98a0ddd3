"""An admission webhook of somebody else's: a server beside the real API server, which asks it."""

import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from devcluster import pki
from devcluster.controlplane import ControlPlane

Obj = dict[str, Any]
HOST_NETWORK = [{"op": "add", "path": "/spec/hostNetwork", "value": True}]
NOBODY = "https://127.0.0.1:1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        answer: Obj = {"uid": asked["uid"], "allowed": self.path.startswith("/mutate?")}
        if answer["allowed"]:
            answer |= {"patchType": "JSONPatch", "patch": b64encode(json.dumps(HOST_NETWORK).encode()).decode()}
        else:
            answer["status"] = {"code": 403, "message": f"{asked['name']} names no cost centre"}
        body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def webhook(plane: ControlPlane) -> Iterator[str]:
    """The address of a server that denies what it is asked at /deny, and gives pods the host's network at /mutate."""
    pki.issue(plane.folder / "pki", pki.Subject("webhook", "webhook", hosts=("127.0.0.1",)))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(plane.folder / "pki/webhook.crt", plane.folder / "pki/webhook.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def configurations(plane: ControlPlane, namespace: str, address: str, jobs: dict[str, str]) -> list[Obj]:
    """Admission of a namespace: pods of `jobs["denied"]` and workloads of `jobs["workload"]` are denied, pods of
    `jobs["mutated"]` are changed, and those of `jobs["away"]` wait for a server that is not there."""
    ca = b64encode(plane.ca.read_bytes()).decode()
    pods, workloads = ("", "v1", "pods"), ("kubeflow.org", "v1", "pytorchjobs")

    def hook(name: str, url: str, job: str, resource: tuple[str, str, str]) -> Obj:
        group, version, plural = resource
        rule = {"apiGroups": [group], "apiVersions": [version], "resources": [plural], "operations": ["CREATE"]}
        return {
            "name": f"{name}.example.com",
            "clientConfig": {"url": url, "caBundle": ca},
            "rules": [rule],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "matchConditions": [{"name": "job", "expression": f"object.metadata.name.startsWith('{job}-')"}],
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 5,
        }

    def configuration(kind: str, *hooks: Obj) -> Obj:
        head = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": f"{kind}WebhookConfiguration"}
        return {**head, "metadata": {"name": namespace}, "webhooks": list(hooks)}

    return [
        configuration("Mutating", hook("mutate", f"{address}/mutate", jobs["mutated"], pods)),
        configuration(
            "Validating",
            hook("pods", f"{address}/deny", jobs["denied"], pods),
            hook("workloads", f"{address}/deny", jobs["workload"], workloads),
            hook("away", NOBODY, jobs["away"], pods),
        ),
    ]
