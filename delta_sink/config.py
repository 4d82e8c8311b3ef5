"""The configuration: `load` makes `Settings` of files and overrides, or names every problem.

Texts become one tree (`references`), the tree becomes typed groups (`settings`, `forms`), and the
groups are compared with each other (`rules`). Nothing here opens a file or reads the environment:
the caller hands both in.

A value is shown in a problem only if it is neither a secret nor from a reference.

`python -m delta_sink.config` prints the JSON Schema of the file, and with `--docs` the reference
page, both made of the descriptions in `settings`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from pydantic import SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from delta_sink.errors import ConfigError
from delta_sink.forms import Wrong, normal_table_uri, size_text
from delta_sink.properties import LOADS_CODE, OWNED, is_secret_property
from delta_sink.references import (
    Referenced,
    Source,
    Tree,
    apply_set,
    kind,
    merged,
    read_trees,
    resolved,
)
from delta_sink.rules import problems_of
from delta_sink.settings import Settings

__all__ = ["Settings", "Source", "json_schema", "load", "normal_table_uri", "reference_page"]

_SHOWN_MAX = 60
_LOCKING_SENTENCE = (
    "refused: delta-rs removed its DynamoDB log store, so that the option would do nothing; "
    "commits are conditional PUTs (table.log_store), and locks are the group `locks`"
)


def load(
    sources: Sequence[Source],
    sets: Sequence[str],
    *,
    env: Mapping[str, str],
    read_file: Callable[[str], str],
) -> Settings:
    """Return the configuration that `sources`, laid over each other in order, and `sets` describe.

    Each of `sets` is `path=value` and is laid over all sources. `env` answers `${NAME}`,
    `read_file` answers `${file:/path}`; it raises OSError as `open` does.

    Raises:
        ConfigError: with every problem at once, each `path: sentence`.
    """
    problems: list[str] = []
    trees = read_trees(sources, problems)
    if problems:
        raise ConfigError(problems)
    tree: Tree = {}
    for above in trees:
        tree = cast("Tree", merged(tree, above))
    for number, assignment in enumerate(sets, start=1):
        tree, found = apply_set(tree, assignment, number=number, is_secret=_is_secret_path)
        problems += found
    tree = resolved(tree, problems, env=env, read_file=read_file)
    reader = _Reader()
    settings = cast("Settings", reader.group(Settings, tree, ""))
    found = reader.problems + problems_of(settings, is_complete=not reader.problems)
    # A value whose reference leads nowhere is wrong once, not twice.
    unresolved = {_path(problem) for problem in problems}
    problems += [problem for problem in found if _path(problem) not in unresolved]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return settings


def _path(problem: str) -> str:
    return problem.partition(": ")[0]


# --- one tree to typed groups ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Key:
    """One key of a group, as its class declares it."""

    name: str
    annotation: Any
    info: FieldInfo
    adapter: TypeAdapter[object]

    @property
    def group(self) -> type | None:
        """The class of the group that this key holds, or None for a single value."""
        for candidate in (self.annotation, *get_args(self.annotation)):
            if dataclasses.is_dataclass(candidate) and isinstance(candidate, type):
                return candidate if candidate.__name__.endswith("Settings") else None
        return None

    @property
    def is_secret(self) -> bool:
        return SecretStr in _parts(self.annotation)


def _parts(annotation: object) -> Iterator[object]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


@functools.cache
def _keys(group: type) -> Mapping[str, _Key]:
    """Return the keys of a group by name."""
    hints = get_type_hints(group, include_extras=True)
    infos: dict[str, FieldInfo] = group.__pydantic_fields__  # type: ignore[attr-defined]  # every group is a pydantic dataclass
    return {
        name: _Key(name, hints[name], info, TypeAdapter(hints[name]))
        for name, info in infos.items()
    }


def _known_paths(group: type, path: str = "") -> Iterator[tuple[str, _Key]]:
    """Yield every key of the file with its path, groups before what is in them."""
    for key in _keys(group).values():
        place = f"{path}.{key.name}" if path else key.name
        yield place, key
        if key.group is not None:
            yield from _known_paths(key.group, place)


def _is_secret_path(path: Sequence[str]) -> bool:
    """Say whether the value at this path of the file is a secret."""
    if path[0] == "kafka":
        return is_secret_property(".".join(path[1:]))
    dotted = ".".join(path)
    return any(
        key.is_secret and (dotted == place or dotted.startswith(f"{place}."))
        for place, key in _known_paths(Settings)
    )


class _Reader:
    """Reads groups, and goes on after a problem; what is wrong is absent from its group."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def group(self, group: type, raw: object, path: str) -> object:
        """Return an instance of `group`; a key that is wrong is an attribute that it lacks."""
        instance: object = object.__new__(group)
        shorthand: str | None = getattr(group, "shorthand", None)
        if shorthand is not None and isinstance(raw, str):
            raw = {shorthand: raw}
        if not isinstance(raw, Mapping):
            self._problem(path, f"expected a mapping, got {kind(raw)}")
            return instance
        keys = _keys(group)
        for name in raw:
            if name not in keys:
                self._unknown(str(name), keys, path)
        for name, key in keys.items():
            place = f"{path}.{name}" if path else name
            found, value = self._value(key, raw, place)
            if found:
                object.__setattr__(instance, name, value)
        return instance

    def _value(self, key: _Key, raw: Mapping[object, object], path: str) -> tuple[bool, object]:
        if key.name not in raw:
            return self._left_out(key, path)
        value = raw[key.name]
        if key.group is not None:
            return True, self.group(key.group, value, path)
        try:
            return True, key.adapter.validate_python(value)
        except ValidationError as error:
            self.problems += _sentences(error, path, is_secret=key.is_secret)
            cause = error.errors(include_url=False)[0].get("ctx", {}).get("error")
            partial: object = getattr(cause, "partial", None)
            return partial is not None, partial

    def _left_out(self, key: _Key, path: str) -> tuple[bool, object]:
        if not key.info.is_required():
            return True, key.info.get_default(call_default_factory=True)
        self._problem(path, f"missing; {_lower_first(key.info.description or '')}")
        if key.group is None:
            return False, None
        return True, object.__new__(key.group)

    def _unknown(self, name: str, keys: Mapping[str, _Key], path: str) -> None:
        place = f"{path}.{name}" if path else name
        if path == "table.storage" and _is_locking_option(name):
            self._problem(place, _LOCKING_SENTENCE)
            return
        plain = name.lower().replace("-", "_").removeprefix("aws_")
        near = get_close_matches(plain, keys, n=1, cutoff=0.6)
        elsewhere = [p for p, _ in _known_paths(Settings) if p.rpartition(".")[2] == plain]
        hint = near[0] if near else elsewhere[0] if elsewhere else None
        self._problem(place, f"unknown key; did you mean '{hint}'?" if hint else "unknown key")

    def _problem(self, path: str, sentence: str) -> None:
        self.problems.append(f"{path or 'the configuration'}: {sentence}")


def _is_locking_option(name: str) -> bool:
    plain = name.lower()
    return any(
        part in plain for part in ("locking_provider", "unsafe_rename", "copy_if_not_exists")
    )


def _lower_first(description: str) -> str:
    return description[:1].lower() + description[1:].rstrip(".")


# --- pydantic's errors as sentences ------------------------------------------------------------

_EXPECTED = {
    "tuple_type": "a list",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "string_type": "text",
    "bool_type": "true or false",
}


def _sentences(error: ValidationError, path: str, *, is_secret: bool) -> Iterator[str]:
    """Yield `path: sentence` for each problem that pydantic found in one value."""
    for detail in error.errors(include_url=False):
        place = path + _location(detail["loc"])
        value: object = detail["input"]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, Wrong):
            for below, sentence in cause.found:
                shown = "" if cause.quiet or is_secret else _got(value)
                yield f"{'.'.join((place, *below))}: {sentence}{shown}"
            continue
        expected = _EXPECTED.get(detail["type"])
        if expected is None and detail["type"] == "literal_error":
            expected = str(detail["ctx"]["expected"]).replace("'", "")
            expected = expected if " or " not in expected else f"one of {expected}"
        hint = "; put it in quotes" if expected == "text" and isinstance(value, int | float) else ""
        shown = "" if is_secret else _got(value)
        yield f"{place}: expected {expected or 'another value'}{hint}{shown}"


def _location(loc: Sequence[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)


def _got(value: object) -> str:
    """Return `, got …`, with the value only where it can hold no secret."""
    if isinstance(value, Referenced):
        return ", got another value from a reference"
    if isinstance(value, bool):
        return f", got {str(value).lower()}"
    if isinstance(value, str):
        text = value if len(value) <= _SHOWN_MAX else f"{value[:_SHOWN_MAX]}…"
        return f", got {text!r}"
    return f", got {value}" if isinstance(value, int | float) else f", got {kind(value)}"


# --- what is generated from the classes --------------------------------------------------------

_REFERENCE = {
    "title": "Reference",
    "description": "A value that is filled in from the environment or a file when it is loaded.",
    "type": "string",
    "pattern": r"\$\{",
}


_NULL: dict[str, object] = {"type": "null"}
_FREE_TEXT = {"type", "minLength", "format", "writeOnly"}


def json_schema() -> dict[str, object]:
    """Return the JSON Schema (2020-12) of the file before references are replaced.

    Where something else than free text is expected, a reference may stand as well, and null
    stands for leaving a key out.
    """
    schema: dict[str, object] = TypeAdapter(Settings).json_schema()
    definitions = cast("dict[str, dict[str, object]]", schema["$defs"])
    for group in (*definitions.values(), schema):
        properties = cast("dict[str, dict[str, object]]", group.get("properties", {}))
        required = cast("list[str]", group.get("required", []))
        for key, written in properties.items():
            properties[key] = _with_reference(written, is_required=key in required)
    definitions["LogStoreSettings"] = {
        "anyOf": [{"enum": ["conditional_put", "dynamodb"]}, definitions["LogStoreSettings"]]
    }
    definitions["Reference"] = dict(_REFERENCE)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "delta-sink configuration",
        **{key: value for key, value in schema.items() if key not in ("$schema", "title")},
    }


def _with_reference(written: dict[str, object], *, is_required: bool) -> dict[str, object]:
    """Return a key's schema that also takes a reference, if no text would do, and null.

    Null means to leave the key out, which a required one cannot be.
    """
    words: dict[str, object] = {
        k: written[k] for k in ("title", "description", "default") if k in written
    }
    value = {k: v for k, v in written.items() if k not in words}
    alternatives = cast("list[dict[str, object]]", value.get("anyOf", [value]))
    alternatives = [_with_reference_inside(a) for a in alternatives if a != _NULL]
    if not any("$ref" in a or a.keys() <= _FREE_TEXT for a in alternatives):
        alternatives.append({"$ref": "#/$defs/Reference"})
    if not is_required:
        alternatives.append(_NULL)
    return {**words, "anyOf": alternatives}


def _with_reference_inside(written: dict[str, object]) -> dict[str, object]:
    items = written.get("items")
    if not isinstance(items, dict) or "properties" in items or items.keys() <= _FREE_TEXT:
        return written
    return {**written, "items": {"anyOf": [items, {"$ref": "#/$defs/Reference"}]}}


def reference_page() -> str:
    """Return docs/configuration.md: every key with its default and its sentence."""
    lines = [_PAGE_HEAD]
    _page_group(Settings, "", lines)
    return "\n".join(lines).rstrip() + "\n"


_PAGE_HEAD = """\
# The configuration file

<!-- Made by `python -m delta_sink.config --docs`; a test fails when this page differs. -->

One YAML file describes one sink. `delta-sink check-config` lists every problem of a file at once.
The machine-readable form of this page is `schemas/config.schema.json`.

* **Several files**: each `--config` is laid over the one before: mappings are merged key by key,
  everything else is replaced. `--set path=value` comes last; its value is YAML, and the keys below
  `kafka` and `table.properties` keep their dots: `--set kafka.bootstrap.servers=broker:9092`.
  A value of `null` (or none) takes a key away.
* **References**: `${NAME}` or `${env:NAME}` is an environment variable, `${NAME:-default}` gives a
  default for one that is not set or empty, `${file:/path}` is a whole file without the newline at
  its end, `${dir:/path:key}` the file `key` in a folder, as Kubernetes mounts secrets. In front of
  `{`, two dollar signs mean one: `$${` is a literal `${`. Anywhere else a dollar sign is itself.
  Inside `{…}` and `[…]`, YAML wants quotes around a reference.
* **Secrets** are shown in no log, message or `repr`. `--set` takes a secret only as a reference,
  because everybody on a machine can read its command lines.
* **Sizes** are bytes, or a number with `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024) or `KB`, `MB`,
  `GB`, `TB` (powers of 1000). **Durations** are whole numbers; the key ends in the unit. **Cron**
  expressions have five fields and are in UTC.
* **YAML** is read by the rules of version 1.2: only `true` and `false` are truth values, a date
  stays text, and a key that stands twice in one mapping is a problem.
"""


def _page_group(group: type, path: str, lines: list[str]) -> None:
    keys = _keys(group)
    if path:
        lines += [f"## `{path}`", "", (group.__doc__ or "").strip(), ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    for name, key in keys.items():
        meaning = f"{key.info.description}{_page_choices(key)}"
        lines.append(f"| `{name}` | {_page_default(key)} | {meaning} |")
    lines.append("")
    if group is Settings:
        _page_kafka(lines)
    for name, key in keys.items():
        if key.group is not None:
            _page_group(key.group, f"{path}.{name}" if path else name, lines)


def _page_kafka(lines: list[str]) -> None:
    lines += ["## `kafka`", "", "Any property of librdkafka, but not these:", ""]
    refused = OWNED | LOADS_CODE
    lines += [f"* `{key}`: {refused[key]}." for key in sorted(refused)]
    lines += ["* `test.mock.*` and callbacks (`*_cb`): a file holds no code and no brokers.", ""]


def _page_choices(key: _Key) -> str:
    if get_origin(key.annotation) is not Literal:
        return ""
    words = [f"`{word}`" for word in get_args(key.annotation)]
    return f" One of {', '.join(words[:-1])} or {words[-1]}."


def _page_default(key: _Key) -> str:
    if key.info.is_required():
        return "required"
    value = key.info.get_default(call_default_factory=True)
    if key.group is not None or value is None:
        return ""
    if key.name == "start":
        return "`earliest`"
    if isinstance(value, int) and not isinstance(value, bool) and "bytes" in key.name:
        return f"`{size_text(value)}`"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`"


def main(arguments: Sequence[str]) -> int:
    """Print the JSON Schema, or with `--docs` the reference page; return the exit code."""
    if arguments not in ([], ["--docs"]):
        sys.stderr.write("usage: python -m delta_sink.config [--docs]\n")
        return 2
    text = reference_page() if arguments else json.dumps(json_schema(), indent=2) + "\n"
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
