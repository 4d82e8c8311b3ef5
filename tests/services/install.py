"""The servers as programs: fetched once, verified, and kept in a cache outside of the checkout.

What is fetched is pinned in `pinned/`: versions by the two `pom.xml` and the `go.mod`, contents by
the checksums beside them. Maven and Go go where they are configured to go on this machine. The
name of an installation holds a digest of its pins, so that a changed pin is a new installation.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PINNED = Path(__file__).with_name("pinned")
CACHE_VARIABLE = "DELTA_SINK_SERVICES_CACHE"
JAVA_VERSION_MIN = 17
GO_VERSION_MIN = (1, 24)
GO_VERSION_MIN_KUBERNETES = (1, 26)
INSTALL_S_MAX = 3600

KUBERNETES_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")

# What a developer has set for work of his own has no part in it.
_GO_ALONE = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
_COPY_JARS = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"


class CannotInstall(Exception):
    """A program is missing that the installation needs; the message says what to install."""


class InstallFailed(Exception):
    """The installation went wrong, or what came is not what was pinned."""


def cache() -> Path:
    """Return the folder of installations."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "delta-sink" / "services"


def kafka_jars() -> Path:
    """Return the folder with Apache Kafka's jars."""
    require_java("Apache Kafka")
    return _jars("kafka", "Apache Kafka")


def dynamodb_jars() -> Path:
    """Return the folder with the jars of DynamoDB Local."""
    require_java("DynamoDB Local")
    return _jars("dynamodb", "DynamoDB Local")


def minio_binary() -> Path:
    """Return MinIO's program, built from the last source of its community edition.

    Go verifies every module against `pinned/minio/go.sum`, which it may not add to.
    """
    return _go_program("minio", "MinIO", "github.com/minio/minio", GO_VERSION_MIN)


def helm_binary() -> Path:
    """Return helm, with which the chart is rendered; verified as `minio_binary` is."""
    return _go_program("helm", "helm", "helm.sh/helm/v3/cmd/helm", GO_VERSION_MIN_KUBERNETES)


def etcd_binary() -> Path:
    """Return etcd, in which the API server of Kubernetes keeps its objects."""
    return _go_program("etcd", "etcd", "go.etcd.io/etcd/server/v3", GO_VERSION_MIN_KUBERNETES)


def kubernetes_programs() -> Path:
    """Return the folder with kube-apiserver, kube-controller-manager, kube-scheduler, kubectl."""
    version = kubernetes_version()
    component = "k8s.io/component-base/version"
    major, minor, _ = version.split(".")
    flags = f"-X {component}.gitVersion=v{version}"  # without it the server says v0.0.0
    flags += f" -X {component}.gitMajor={major} -X {component}.gitMinor={minor}"
    packages = [f"k8s.io/kubernetes/cmd/{program}" for program in KUBERNETES_PROGRAMS]
    folder = _go_built("kubernetes", "Kubernetes", packages, GO_VERSION_MIN_KUBERNETES, "", flags)
    missing = [program for program in KUBERNETES_PROGRAMS if not (folder / program).exists()]
    if missing:
        raise InstallFailed(f"{folder} has no {missing}; remove it to install it again")
    return folder


def all_of_kubernetes() -> None:
    """Have everything that `tests/k8s` needs."""
    for part in (helm_binary, etcd_binary, kubernetes_programs, custom_resources):
        part()


def kubernetes_version() -> str:
    """Return the version of Kubernetes that is pinned, such as 1.37.2."""
    text = (PINNED / "kubernetes" / "go.mod").read_text(encoding="utf-8")
    found = re.search(r"k8s\.io/kubernetes v(\d+\.\d+\.\d+)", text)
    assert found is not None
    return found[1]


def custom_resources() -> Path:
    """Return the folder with the definitions of the kinds that the chart has from elsewhere.

    They are KEDA's and the Prometheus operator's own, taken out of their Go modules.
    """
    with _installation("crds") as (folder, fresh):
        if fresh is not None:
            require_go("a custom resource's module", GO_VERSION_MIN)
            for pin in json.loads((PINNED / "crds" / "modules.json").read_text(encoding="utf-8")):
                name = f"{pin['module']}@{pin['version']}"
                told = _run(["go", "mod", "download", "-json", name], fresh, _GO_ALONE)
                shutil.copy(Path(json.loads(told)["Dir"]) / pin["path"], fresh)
        verify(fresh or folder, PINNED / "crds" / "files.sha256")
    return folder


def delta_kernel() -> list[str]:
    """Return the command that reads a table with Delta Kernel for Java: `KernelReader.java`."""
    require_java("Delta Kernel")
    jars = _jars("kernel", "Delta Kernel")
    reader = PINNED / "kernel" / "KernelReader.java"
    # A single source file is compiled as it is started.
    return ["java", "-Xmx1g", "-cp", f"{jars}/*", str(reader)]


def python_readers() -> Path:
    """Return a folder of Python packages, DuckDB with its extension for Delta, not of this venv."""
    with _installation("readers") as (folder, fresh):
        if fresh is not None:
            pins = str(PINNED / "readers" / "requirements.txt")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command += ["--require-hashes", "--only-binary", ":all:", "--target", str(fresh)]
            _run([*command, "--requirement", pins], fresh, {})
    return folder


def _go_program(name: str, what: str, package: str, version_min: tuple[int, int]) -> Path:
    return _go_built(name, what, [package], version_min, name, "") / name


def _go_built(
    name: str,
    what: str,
    packages: Sequence[str],
    version_min: tuple[int, int],
    output: str,
    flags: str,
) -> Path:
    """Return the folder with the programs; without `output` each has its package's name."""
    with _installation(name) as (folder, fresh):
        if fresh is not None:
            require_go(what, version_min)
            for pin in ("go.mod", "go.sum"):
                shutil.copy(PINNED / name / pin, fresh)
            command = [
                "go",
                "build",
                "-mod=readonly",
                "-trimpath",
                f"-ldflags=-s -w {flags}".strip(),
            ]
            command += ["-o", f"{fresh}/{output}", *packages]
            _run(command, fresh, _GO_ALONE)
    return folder


def require_java(what: str) -> None:
    """Raise CannotInstall unless there is a JDK that is new enough for `what`."""
    wanted = f"{what} needs a JDK of version {JAVA_VERSION_MIN} or later"
    if shutil.which("java") is None or shutil.which("javac") is None:
        raise CannotInstall(f"{wanted}, there is none: install openjdk-17-jdk-headless, or Docker")
    told = _told(["javac", "-version"])
    found = re.search(r"javac (\d+)", told)
    if found is None or int(found[1]) < JAVA_VERSION_MIN:
        raise CannotInstall(f"{wanted}, this is {told.strip()!r}")


def require_go(what: str, version_min: tuple[int, int] = GO_VERSION_MIN) -> None:
    """Raise CannotInstall unless there is a Go that builds `what`."""
    wanted = f"{what} is built with Go {'.'.join(map(str, version_min))} or later"
    if shutil.which("go") is None:
        raise CannotInstall(f"{wanted}, there is none: install Go, or Docker")
    told = _told(["go", "version"])
    found = re.search(r"go(\d+)\.(\d+)", told)
    if found is None or (int(found[1]), int(found[2])) < version_min:
        raise CannotInstall(f"{wanted}, this is {told.strip()!r}")


def _told(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def _jars(name: str, what: str) -> Path:
    with _installation(name) as (folder, fresh):
        if fresh is not None:
            if shutil.which("mvn") is None:
                raise CannotInstall(
                    f"{what} is fetched by Maven, there is no mvn: install maven, or Docker"
                )
            pom = str(PINNED / name / "pom.xml")
            arguments = ["-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
            _run(["mvn", "-q", "-B", "-f", pom, _COPY_JARS, *arguments], fresh, {})
        verify(fresh or folder, PINNED / name / "files.sha256")
    return folder


def verify(folder: Path, checksums: Path) -> None:
    """Return if `folder` has exactly the files of `checksums`, with exactly their contents.

    Raises:
        InstallFailed: the first file that is missing, not listed, or different.
    """
    lines = checksums.read_text(encoding="ascii").splitlines()
    wanted = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    found = {path.name: path for path in folder.iterdir()}
    for name in sorted(wanted.keys() ^ found.keys()):
        state = "is missing" if name in wanted else "was not asked for"
        raise InstallFailed(f"{folder / name} {state}; remove {folder} to install it again")
    for name, path in sorted(found.items()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != wanted[name]:
            raise InstallFailed(
                f"{path}: SHA-256 {digest}, wanted {wanted[name]}; remove {folder} to install it "
                f"again"
            )


@contextmanager
def _installation(name: str) -> Iterator[tuple[Path, Path | None]]:
    """Give the folder of an installation and, if it is not there, a fresh one to fill.

    One process at a time is inside. What was filled becomes the installation at the end, whole;
    after an error nothing of it stays.
    """
    root = cache()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{name}-{_pins_digest(name)}"
    with (root / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            yield folder, None
            return
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        try:
            began_s = time.monotonic()
            yield folder, fresh
            fresh.rename(folder)
            print(f"installed {name} in {time.monotonic() - began_s:.0f} s", flush=True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _pins_digest(name: str) -> str:
    digest = hashlib.sha256()
    for path in sorted((PINNED / name).iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    """Return what an installation step printed; it is run at low priority."""
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    try:
        done = subprocess.run(
            [*nice, *command],
            cwd=folder,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INSTALL_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InstallFailed(f"{command[0]} took longer than {INSTALL_S_MAX} s") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise InstallFailed(f"{' '.join(command[:2])} failed with {done.returncode}:\n{tail}")
    return done.stdout
