"""Nodes without containers: what a kubelet says of pods is said, and nothing is run.

A pod that the scheduler bound becomes ready; one that is not restarted ends well at once; one that
is deleted goes. The API server, its controllers and the scheduler cannot tell the difference, so
that rollouts, Jobs and evictions are theirs and real.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Sequence
from typing import Any

from tests.services.kube_api import MERGE, KubeApi, Object, Refused

LOOK_S = 0.1
_ROOM = {"cpu": "1000", "memory": "4Ti", "pods": "1000"}
_CONDITIONS = ("Initialized", "Ready", "ContainersReady", "PodScheduled")


class KubeNodes:
    """Some nodes, played by one thread."""

    def __init__(self, api: KubeApi, names: Sequence[str]) -> None:
        """Describe the nodes; they are not there yet."""
        self._api = api
        self._names = tuple(names)
        self._ended = threading.Event()
        self._held = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kube-nodes", daemon=True)
        self.failure: BaseException | None = None
        """What ended the thread before its time."""

    def start(self) -> None:
        """Return when the nodes are there and take pods."""
        for name in self._names:
            self._register(name)
        self._thread.start()

    def close(self) -> None:
        """Return when nothing is said any more; raise what went wrong meanwhile."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.failure is not None:
            raise self.failure

    def hold(self) -> None:
        """From now on no pod becomes ready; those that are stay so, and deleted ones go."""
        self._held.set()

    def release(self) -> None:
        """Pods become ready again, those that were held too."""
        self._held.clear()

    def _register(self, name: str) -> None:
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": f"zone-{name}"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}
        self._api.done("POST", "api/v1/nodes", node)
        ready = {"type": "Ready", "status": "True", "reason": "Played", "message": "no kubelet"}
        ready |= {"lastHeartbeatTime": _now(), "lastTransitionTime": _now()}
        status = {"status": {"capacity": _ROOM, "allocatable": _ROOM, "conditions": [ready]}}
        path = f"api/v1/nodes/{name}"
        self._api.done("PATCH", f"{path}/status", status, content_type=MERGE)
        # A new node is born with a taint that a controller takes away, which is not run here.
        self._api.done("PATCH", path, {"spec": {"taints": None}}, content_type=MERGE)

    def _run(self) -> None:
        try:
            while not self._ended.wait(LOOK_S):
                self._look()
        except BaseException as error:
            self.failure = error

    def _look(self) -> None:
        try:
            for pod in self._api.done("GET", "api/v1/pods")["items"]:
                if pod["spec"].get("nodeName") in self._names:
                    self._serve(pod)
        except OSError:
            return  # the server is slow, or gone: the next look, or the test, will tell

    def _serve(self, pod: Object) -> None:
        """Say the next thing of a pod, if there is one."""
        name = f"{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        path = f"api/v1/namespaces/{name}"
        try:
            if "deletionTimestamp" in pod["metadata"]:
                self._api.done("DELETE", path, {"gracePeriodSeconds": 0})
            elif pod["status"].get("phase") == "Pending" and not self._held.is_set():
                status = {"status": _status(pod)}
                self._api.done("PATCH", f"{path}/status", status, content_type=MERGE)
        except Refused:
            return  # it was deleted or changed meanwhile: the next look will tell


def _status(pod: Object) -> dict[str, Any]:
    now = _now()
    ends = pod["spec"]["restartPolicy"] != "Always"
    done = {"terminated": {"exitCode": 0, "startedAt": now, "finishedAt": now}}
    state = done if ends else {"running": {"startedAt": now}}

    def said(container: Object, state: Object, ready: bool) -> Object:
        found = {"name": container["name"], "image": container["image"], "imageID": ""}
        return found | {"ready": ready, "restartCount": 0, "state": state}

    return {
        "phase": "Succeeded" if ends else "Running",
        "startTime": now,
        "podIP": "10.1.0.9",
        "conditions": [
            {
                "type": name,
                "status": "False" if ends and "Ready" in name else "True",
                "lastTransitionTime": now,
            }
            for name in _CONDITIONS
        ],
        "initContainerStatuses": [
            said(container, done, ready=True) for container in pod["spec"].get("initContainers", [])
        ],
        "containerStatuses": [
            said(container, state, ready=not ends) for container in pod["spec"]["containers"]
        ],
    }


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
