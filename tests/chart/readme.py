"""`python -m tests.chart.readme`: the chart's README, from the comments of its values."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tests.chart.rendering import CHART

HEAD = """\
# The chart delta-sink

One release is one sink: writers, compactors and vacuums of one Delta table. Written by
`python -m tests.chart.readme` from `values.yaml`; change the comments there, not this file.

```sh
helm install orders helm/delta-sink -n lake -f orders.yaml
helm test orders -n lake
```

`orders.yaml` has the sink's own file under `config`; `ci/values.yaml` beside this file is a whole
example. What contradicts is refused with a sentence before anything is installed. Build the image
with the Dockerfile at the root of the repository and name it under `image`.

Each kind of worker has a service account of its own: only the vacuum's needs the right to delete
objects of the table. A changed `config` rolls the pods. Workers notice that a mounted Secret has
changed and restart with it; one in the environment needs `kubectl rollout restart`. An init Job stays when it has ended; a changed
configuration makes a new one and removes the old.

## Values

| value | default | what it is |
|---|---|---|
"""

_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z]+):(?P<rest>.*)$")


def document() -> str:
    """Return the README."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    rows = [
        f"| `{'.'.join(path)}` | `{json.dumps(_at(values, path))}` | {sentence} |"
        for path, sentence in described(text)
    ]
    return HEAD + "\n".join(rows) + "\n"


def described(text: str) -> list[tuple[tuple[str, ...], str]]:
    """Return each value that has a comment, by its path, with the comment on one line."""
    found: list[tuple[tuple[str, ...], str]] = []
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("# -- "):
            comment = [bare.removeprefix("# -- ")]
        elif bare.startswith("# ") and comment:
            comment.append(bare.removeprefix("# "))
        elif match := _LINE.match(line):
            path = [*path[: len(match["indent"]) // 2], match["key"]]
            if comment:
                found.append((tuple(path), " ".join(comment).replace("|", "\\|")))
            comment = []
    return found


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


if __name__ == "__main__":
    print(document(), end="")
