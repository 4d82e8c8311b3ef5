"""Releases of the chart on the API server: installed, upgraded and removed by helm."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from tests.chart.rendering import CHART, RELEASE, Object
from tests.services.install import helm_binary
from tests.services.kube_api import KubeApi, Refused, kinds, place
from tests.services.kubernetes import Kubernetes

PATIENCE_S = 60.0
POLICY = "pod-security.kubernetes.io/enforce"

# What helm and the controllers make themselves, beside what a chart has.
_NOT_OF_THE_CHART = ("ReplicaSet", "Secret", "RoleBinding")


def wait_until(question: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Return the first answer that is true; fail when there is none in time."""
    deadline_s = time.monotonic() + patience_s
    while not (found := question()):
        assert time.monotonic() < deadline_s, f"in {patience_s:.0f} s: {what}"
        time.sleep(0.05)
    return found


def open_namespace(kubernetes: Kubernetes, name: str, policy: str = "restricted") -> None:
    """Return when there is a namespace that enforces the policy and takes pods."""
    labels = {POLICY: policy, f"{POLICY}-version": "latest"}
    found = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubernetes.api.done("POST", "api/v1/namespaces", found)
    wait_until(lambda: kubernetes.is_open(name), f"{name} takes pods")


class Releases:
    """The release `orders` of one namespace."""

    def __init__(self, kubernetes: Kubernetes, namespace: str, folder: Path) -> None:
        self.kubernetes = kubernetes
        self.namespace = namespace
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.helm("uninstall", RELEASE, "--ignore-not-found")

    @property
    def api(self) -> KubeApi:
        """The API server, as an administrator sees it."""
        return self.kubernetes.api

    def helm(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run helm in the namespace; whatever it says is returned."""
        return self.kubernetes.run([str(helm_binary()), *words, "--namespace", self.namespace])

    def install(self, values: Object, *words: str) -> str:
        """Return what helm said of a release that was installed and stands."""
        return self._released("install", values, *words)

    def upgrade(self, values: Object, *words: str) -> str:
        """Return what helm said of a release that was upgraded and stands."""
        return self._released("upgrade", values, *words)

    def attempt(self, verb: str, values: Object, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `install`, `upgrade` or `template` with these values."""
        return self.helm(verb, RELEASE, str(CHART), "--values", self.write(values), *words)

    def write(self, values: Object) -> str:
        """Return the path of a file with these values, for the next command."""
        path = self._folder / "values.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(path)

    def rendered(self, values: Object) -> list[str]:
        """Return the texts of the objects, as the chart writes them for this API server."""
        done = self.attempt("template", values, "--kube-version", self.kubernetes.version)
        assert done.returncode == 0, done.stderr
        texts = re.split(r"^---\n", done.stdout, flags=re.MULTILINE)
        return [text for text in texts if yaml.safe_load(text)]

    def objects(self, values: Object) -> list[Object]:
        """Return the objects of `rendered`."""
        return [yaml.safe_load(text) for text in self.rendered(values)]

    def live(self, wanted: Object) -> Object:
        """Return the object of the API server that has the kind and name of this one."""
        return self.api.one(wanted["kind"], self.namespace, wanted["metadata"]["name"])

    def left(self) -> list[tuple[str, str]]:
        """Return kind and name of what there still is of the release."""
        selector = f"app.kubernetes.io/instance={RELEASE}"
        return [
            (kind, found["metadata"]["name"])
            for kind in kinds()
            if kind not in _NOT_OF_THE_CHART
            for found in self.api.items(kind, self.namespace, labelSelector=selector)
        ]

    def pods(self, component: str) -> dict[str, Object]:
        """Return the pods of a component by their uid, those that are on their way out too."""
        selector = f"app.kubernetes.io/component={component}"
        found = self.api.items("Pod", self.namespace, labelSelector=selector)
        return {pod["metadata"]["uid"]: pod for pod in found}

    def ready(self, component: str) -> set[str]:
        """Return the uids of the pods of a component that are ready and stay."""
        return {
            uid
            for uid, pod in self.pods(component).items()
            if "deletionTimestamp" not in pod["metadata"] and _is_ready(pod)
        }

    def evict(self, pod: Object, **query: str) -> int:
        """Return the status with which the API server answers an eviction."""
        name = pod["metadata"]["name"]
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        path = f"{place('Pod', self.namespace)}/{name}/eviction"
        return self.api.request("POST", path, body, query=query).status

    def _released(self, verb: str, values: Object, *words: str) -> str:
        waiting = ["--wait", "--wait-for-jobs", "--timeout", "90s"]
        done = self.attempt(verb, values, *waiting, *words)
        assert done.returncode == 0, done.stderr
        # A Deployment whose pods Pod Security would refuse is taken, with a warning.
        assert "warning" not in done.stderr.lower(), done.stderr
        return done.stdout


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield a name and, as a pod, everything of a release that becomes one."""
    for found in objects:
        name = found["metadata"]["name"]
        match found["kind"]:
            case "Deployment" | "Job":
                template = found["spec"]["template"]
            case "CronJob":
                template = found["spec"]["jobTemplate"]["spec"]["template"]
            case "Pod":
                template = found
            case _:
                continue
        labels = template["metadata"]["labels"]
        metadata = {"name": name, "labels": labels}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        yield f"{found['kind']}/{name}", pod


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield where `found` has not what `wanted` has; what it has beyond that is not asked."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key, value in wanted.items():
            yield from differences(value, found.get(key), f"{path}/{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(one, other, f"{path}/{number}")
    elif wanted != found and not (wanted in ({}, [], None) and found is None):
        yield f"{path}: {found!r}, wanted {wanted!r}"


def refusal(request: Callable[[], Any]) -> str:
    """Return the sentence with which the API server refuses."""
    try:
        request()
    except Refused as error:
        return str(error)
    raise AssertionError("the API server took it")
