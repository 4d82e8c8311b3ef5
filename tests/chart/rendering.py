"""Helm, as the chart's tests use it: values in, objects or a sentence out."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "delta-sink"
RELEASE = "orders"
NAME = "orders-delta-sink"
KUBERNETES = "1.31.0"

Object = dict[str, Any]


def whole_values() -> Object:
    """Return the values of a whole release, fresh."""
    return yaml.safe_load((CHART / "ci" / "values.yaml").read_text(encoding="utf-8"))


def laid_over(values: Object, over: Mapping[str, Any]) -> Object:
    """Return `values` with dotted paths of `over` set; a value of `...` takes the path away."""
    found = copy.deepcopy(values)
    for path, value in over.items():
        *folders, name = path.split("/")
        inner = found
        for folder in folders:
            inner = inner.setdefault(folder, {})
        if value is ...:
            inner.pop(name, None)
        else:
            inner[name] = value
    return found


class Helm:
    """The chart, rendered by the program `binary`."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary = binary
        self._folder = folder

    def run(
        self, *words: object, values: Object, chart: Path = CHART
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of helm on the chart with these values."""
        path = self._folder / "values.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        command = [self._binary, *words, chart, "-f", path, "--kube-version", KUBERNETES]
        return subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def objects(self, over: Mapping[str, Any], values: Object | None = None) -> list[Object]:
        """Return what the chart makes of the whole release's values with `over` laid over."""
        chosen = laid_over(whole_values() if values is None else values, over)
        done = self.run("template", RELEASE, "-n", "lake", values=chosen)
        assert done.returncode == 0, done.stderr
        return [found for found in yaml.safe_load_all(done.stdout) if found]

    def sentence(self, over: Mapping[str, Any], values: Object | None = None) -> str:
        """Return the sentence with which helm refuses the values."""
        chosen = laid_over(whole_values() if values is None else values, over)
        done = self.run("template", RELEASE, "-n", "lake", values=chosen)
        assert done.returncode != 0, "these values were taken"
        return done.stderr


def one(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of this kind and name."""
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def kinds(objects: list[Object]) -> list[str]:
    """Return the kinds of all objects, sorted."""
    return sorted(found["kind"] for found in objects)


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield kind and pod specification of everything that runs."""
    for found in objects:
        match found["kind"]:
            case "Deployment" | "Job":
                yield found["kind"], found["spec"]["template"]["spec"]
            case "CronJob":
                yield "CronJob", found["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            case "Pod":
                yield "Pod", found["spec"]


def containers(objects: list[Object]) -> Iterator[Object]:
    """Yield every container of every pod."""
    for _, pod in pods(objects):
        yield from pod.get("initContainers", [])
        yield from pod["containers"]
