"""A client of the Kubernetes API: one request, one answer, nothing hidden."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

Object = dict[str, Any]

TIMEOUT_S = 30.0

JSON = "application/json"
YAML = "application/yaml"
MERGE = "application/merge-patch+json"

# Where objects of a kind are: group, version and plural.
_PLACES = {
    "ConfigMap": "api/v1/configmaps",
    "CronJob": "apis/batch/v1/cronjobs",
    "Deployment": "apis/apps/v1/deployments",
    "Job": "apis/batch/v1/jobs",
    "NetworkPolicy": "apis/networking.k8s.io/v1/networkpolicies",
    "Pod": "api/v1/pods",
    "PodDisruptionBudget": "apis/policy/v1/poddisruptionbudgets",
    "PodMonitor": "apis/monitoring.coreos.com/v1/podmonitors",
    "ReplicaSet": "apis/apps/v1/replicasets",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/rolebindings",
    "ScaledObject": "apis/keda.sh/v1alpha1/scaledobjects",
    "Secret": "api/v1/secrets",
    "ServiceAccount": "api/v1/serviceaccounts",
}


class Refused(Exception):
    """The API server said no; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the HTTP status, the object, and the warnings of its headers."""

    status: int
    body: Object
    warnings: tuple[str, ...]

    @property
    def message(self) -> str:
        """The sentence of a refusal, else nothing."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True, slots=True)
class KubeApi:
    """Requests to one API server under one name; a request is a connection of its own."""

    port: int
    authority: Path
    token: str
    acting_as: str = ""
    groups: tuple[str, ...] = ()

    def impersonating(self, user: str, groups: Sequence[str] = ()) -> KubeApi:
        """Return this client under another name."""
        return replace(self, acting_as=user, groups=tuple(groups))

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> Answer:
        """Return the answer, whatever it says; `body` is an object, or text of the type given."""
        context = ssl.create_default_context(cafile=str(self.authority))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=TIMEOUT_S, context=context
        )
        text = body if isinstance(body, str) or body is None else json.dumps(body)
        # A header for each group, which a mapping could not hold.
        headers = [("Authorization", f"Bearer {self.token}"), ("Accept", JSON)]
        headers += [("Impersonate-User", self.acting_as)] if self.acting_as else []
        headers += [("Impersonate-Group", group) for group in self.groups]
        try:
            target = f"/{path}?{urlencode(query)}" if query else f"/{path}"
            connection.putrequest(method, target)
            for name, value in headers:
                connection.putheader(name, value)
            data = (text or "").encode()
            connection.putheader("Content-Type", content_type)
            connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            answer = connection.getresponse()
            warnings = tuple(answer.headers.get_all("Warning") or ())
            found = answer.read()
        finally:
            connection.close()
        if not answer.headers.get_content_type().endswith("json"):
            return Answer(answer.status, {"message": found.decode(errors="replace")}, warnings)
        return Answer(answer.status, json.loads(found), warnings)

    def done(self, method: str, path: str, body: object = None, **options: Any) -> Object:
        """Return the object of an answer that says yes.

        Raises:
            Refused: it said no.
        """
        answer = self.request(method, path, body, **options)
        if answer.status >= 300:
            raise Refused(f"{method} {path}: {answer.status}: {answer.message}")
        return answer.body

    def items(self, kind: str, namespace: str, **query: str) -> list[Object]:
        """Return the objects of a kind in a namespace."""
        found = self.done("GET", place(kind, namespace), query=query)
        return list(found["items"])

    def one(self, kind: str, namespace: str, name: str) -> Object:
        """Return one object, which must be there."""
        return self.done("GET", f"{place(kind, namespace)}/{name}")


def place(kind: str, namespace: str) -> str:
    """Return the path of a kind's objects in a namespace."""
    version, _, plural = _PLACES[kind].rpartition("/")
    return f"{version}/namespaces/{namespace}/{plural}"


def kinds() -> tuple[str, ...]:
    """Return the kinds that have a place."""
    return tuple(_PLACES)
