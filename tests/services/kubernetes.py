"""A Kubernetes without containers: etcd, API server, controllers, scheduler, and played nodes.

Everything that decides is the real program: admission with Pod Security and service accounts,
validation, RBAC, rollouts, Jobs, disruption budgets, scheduling. Nothing is run in the pods.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import yaml

from tests.services.install import (
    CannotInstall,
    etcd_binary,
    kubernetes_programs,
    kubernetes_version,
)
from tests.services.kube_api import YAML, KubeApi
from tests.services.kube_nodes import KubeNodes
from tests.services.minio import answers
from tests.services.processes import NativeServer, ServerFailed, free_port

NODES = ("one", "two")
COMMAND_S = 120.0

# Controllers that look after machines: there are none, and the played nodes say all there is.
_NOT_RUN = ("node-ipam-controller", "node-lifecycle-controller")


class Kubernetes:
    """A control plane as processes of this machine."""

    def __init__(self, folder: Path) -> None:
        """Describe it; nothing is started.

        Raises:
            CannotInstall: Go or openssl is missing.
        """
        self.version = kubernetes_version()
        self.programs = kubernetes_programs()
        self.kubeconfig = folder / "kubeconfig"
        self._folder = folder
        folder.mkdir(parents=True)
        self.api = KubeApi(
            free_port(), folder / "certificates" / "apiserver.crt", secrets.token_hex(16)
        )
        etcd_port = free_port()
        self._servers = [
            self._etcd(etcd_port),
            self._api_server(etcd_port),
            self._controllers(),
            self._scheduler(),
        ]
        self.nodes = KubeNodes(self.api, NODES)

    def __enter__(self) -> Self:
        """Return when pods can be scheduled."""
        self._write_files()
        try:
            for server in self._servers:
                server.start()
            self.nodes.start()
        except BaseException:
            self._close_servers()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.nodes.close()
        finally:
            self._close_servers()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which kubectl and helm find this server, and nothing of this machine."""
        path = os.pathsep.join([str(self.programs), os.environ["PATH"]])
        home = str(self._folder / "home")
        return {"PATH": path, "HOME": home, "KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run kubectl."""
        return self.run([str(self.programs / "kubectl"), *words])

    def run(
        self, command: list[str], folder: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that finds this server; whatever it says is returned."""
        return subprocess.run(
            command,
            cwd=folder or self._folder,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def define(self, text: str) -> None:
        """Return when the API server serves the kind of a CustomResourceDefinition."""
        path = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        found = self.api.done("POST", path, text, content_type=YAML)
        deadline_s = time.monotonic() + COMMAND_S
        while not self._is_served(f"{path}/{found['metadata']['name']}"):
            if time.monotonic() > deadline_s:
                raise ServerFailed(f"{found['metadata']['name']} is not served")
            time.sleep(0.05)

    def _is_served(self, path: str) -> bool:
        found = self.api.done("GET", path)
        spec = found["spec"]
        version = next(each["name"] for each in spec["versions"] if each["served"])
        kind = f"apis/{spec['group']}/{version}/{spec['names']['plural']}"
        return self.api.request("GET", kind).status == 200

    def is_open(self, namespace: str) -> bool:
        """Whether a namespace takes pods: its service account and authority are there."""
        account = f"api/v1/namespaces/{namespace}/serviceaccounts/default"
        authority = f"api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt"
        return all(self.api.request("GET", path).status == 200 for path in (account, authority))

    def _etcd(self, port: int) -> NativeServer:
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
        command = [str(etcd_binary()), "--name", "one", "--data-dir", str(self._folder / "etcd")]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"one={peer}", "--log-level", "warn", "--unsafe-no-fsync"]
        ready = partial(answers, port, "/health")
        return NativeServer("etcd", command, folder=self._folder, ready=ready)

    def _api_server(self, etcd_port: int) -> NativeServer:
        key = str(self._folder / "accounts.key")
        options = {
            "etcd-servers": f"http://127.0.0.1:{etcd_port}",
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": str(self.api.port),
            "cert-dir": str(self.api.authority.parent),
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "token-auth-file": str(self._folder / "tokens.csv"),
            "authorization-mode": "RBAC",
            "service-cluster-ip-range": "10.0.0.0/24",
            "endpoint-reconciler-type": "none",
            "profiling": "false",
            # Without it a privileged container is refused before Pod Security is asked.
            "allow-privileged": "true",
        }
        return self._server("kube-apiserver", options, self._is_ready)

    def _controllers(self) -> NativeServer:
        options = {
            "kubeconfig": str(self.kubeconfig),
            "leader-elect": "false",
            "bind-address": "127.0.0.1",
            "secure-port": "0",
            "service-account-private-key-file": str(self._folder / "accounts.key"),
            "root-ca-file": str(self.api.authority),
            "controllers": ",".join(["*", *(f"-{name}" for name in _NOT_RUN)]),
        }
        return self._server("kube-controller-manager", options, lambda: self.is_open("default"))

    def _scheduler(self) -> NativeServer:
        options = {
            "kubeconfig": str(self.kubeconfig),
            "leader-elect": "false",
            "bind-address": "127.0.0.1",
            "secure-port": "0",
        }
        return self._server("kube-scheduler", options, lambda: True)

    def _server(
        self, name: str, options: Mapping[str, str], ready: Callable[[], bool]
    ) -> NativeServer:
        command = [str(self.programs / name)]
        command += [f"--{option}={value}" for option, value in options.items()]
        return NativeServer(name, command, folder=self._folder, ready=ready)

    def _is_ready(self) -> bool:
        if not self.api.authority.exists():
            return False
        try:
            return self.api.request("GET", "readyz").status == 200
        except OSError:
            return False

    def _write_files(self) -> None:
        (self._folder / "home").mkdir()
        if shutil.which("openssl") is None:
            raise CannotInstall("Kubernetes signs with a key of openssl, there is none: install it")
        key = str(self._folder / "accounts.key")
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = self._folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f"{self.api.token},admin,admin,system:masters\n", encoding="ascii")
        server = f"https://127.0.0.1:{self.api.port}"
        cluster = {"server": server, "certificate-authority": str(self.api.authority)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.api.token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
            "current-context": "here",
        }
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")

    def _close_servers(self) -> None:
        for server in reversed(self._servers):
            server.close()
