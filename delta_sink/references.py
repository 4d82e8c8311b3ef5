"""From the texts of configuration files to one tree of plain values.

The steps, each pure: YAML text → tree (`read_yaml`), trees laid over each other (`merged`),
`--set path=value` over all of them (`apply_set`), references replaced (`resolved`). Every step
collects its problems as `path: sentence` and goes on, so that a person sees all of them at once.

YAML is read by the rules of its version 1.2: only `true` and `false` are booleans, only decimal,
`0o` and `0x` digits are integers, and a date stays text. A key may stand once in a mapping. A
value of null means "as if the key were not there", so that an overlay can take a key away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from msgspec import Struct

Tree = dict[object, object]
"""A mapping as YAML gives it: keys are text (or numbers, in `source.start.offsets`)."""

NESTING_MAX = 64
"""Levels that a file may have; more is a mistake or an attack with anchors."""
VALUES_MAX = 100_000
"""Values that a file may expand to; aliases multiply, and this stops them."""

_DOLLARS = re.compile(r"\$+(?=\{)")
_BRACES = re.compile(r"\{([^{}]*)(\}?)")
_ONE_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_ENV = re.compile(rf"(?:env:)?(?P<name>{_NAME})(?P<default>:-.*)?", re.DOTALL)
_DIR = re.compile(r"dir:(?P<path>.+):(?P<key>[^:/]+)")
_REFERENCE_FORMS = "${NAME}, ${env:NAME}, ${NAME:-default}, ${file:/path} or ${dir:/path:key}"
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_LITERAL = "a literal ${ is written $${"


class Source(Struct, frozen=True):
    """One configuration file: `name` is what problems call it, `text` is its YAML."""

    name: str
    text: str


class Referenced(str):
    """Text that holds the value of a reference. Its `repr` never shows it, so no sentence does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<from a reference>"


# --- YAML --------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and without silent duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML declares it so

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[tuple[int, str]] = []

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Return the node; a key that stands twice is noted in `duplicates`.

        Looked at before merge keys (`<<`) are resolved: what a merge brings may be overridden.
        `anchor` is the anchor's name or None; the type is the one that the stubs declare.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    self.duplicates.append((key.start_mark.line + 1, key.value))
                seen.add((key.tag, key.value))
        return node

    def _integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)

    def _float(self, node: yaml.ScalarNode) -> float:
        return float(str(self.construct_scalar(node)))


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        [*_first, *([""] if _tag == "null" else [])],
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader._integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader._float)


def read_yaml(source: Source, problems: list[str]) -> object:
    """Return the value of the one YAML document in `source`; None if it is empty or broken.

    Problems begin with the source's name and, where YAML tells it, the line.
    """
    try:
        loader = _Loader(source.text)
        value: object = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = source.name if mark is None else f"{source.name}:{mark.line + 1}"
        problems.append(f"{place}: not valid YAML: {_without_values(error)}")
        return None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "it cannot be read")
        problems.append(f"{source.name}: not valid YAML: {reason}")
        return None
    except (RecursionError, ValueError):
        problems.append(f"{source.name}: not valid YAML: nested too deep or a value out of range")
        return None
    problems.extend(
        f"{source.name}:{line}: the key '{key}' stands twice in one mapping"
        for line, key in loader.duplicates
    )
    return value


def _without_values(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong without the words of the file that PyYAML quotes: one may be a secret."""
    sentence = ", ".join(part for part in (error.context, error.problem) if part)
    return _QUOTED.sub(lambda m: m[0] if len(m[0]) <= 3 or m[0][1] == "<" else "…", sentence)


def read_trees(sources: Sequence[Source], problems: list[str]) -> list[Tree]:
    """Return the mapping that each source holds, in order; an empty source is an empty mapping."""
    trees: list[Tree] = []
    for source in sources:
        value = read_yaml(source, problems)
        if isinstance(value, dict):
            trees.append(value)
        elif value is not None:
            problems.append(f"{source.name}: expected a mapping at the top, got {kind(value)}")
    return trees


def kind(value: object) -> str:
    """Return what sort of value this is, in words, without showing it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a mapping" if isinstance(value, Mapping) else "a list"


# --- overlays and --set ------------------------------------------------------------------------


def merged(below: object, above: object) -> object:
    """Return `above` laid over `below`: mappings key by key, everything else replaced."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    result: Tree = dict(below)
    for key, value in above.items():
        result[key] = merged(result.get(key), value)
    return result


def apply_set(
    tree: Tree, assignment: str, *, number: int, is_secret: Callable[[Sequence[str]], bool]
) -> tuple[Tree, list[str]]:
    """Return `tree` with `path=value` laid over it, and the problems of that assignment.

    `number` counts from 1 and names an assignment whose text must not be shown. Keys below
    `kafka` and `table.properties` keep their dots; a step into a list is its index.

    A secret key takes nothing but a reference, because a command line is visible to everybody on
    the machine.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        return tree, [f"--set (number {number}): expected path=value"]
    steps = path_steps(path.strip())
    problems: list[str] = []
    value = read_yaml(Source("", text), problems)
    if problems:
        return tree, [f"--set {path.strip()}: the value is not valid YAML; put it in quotes"]
    for leaf_path, leaf in _leaves(value, steps):
        if is_secret(leaf_path) and not _is_one_reference(leaf):
            problems.append(
                f"{'.'.join(leaf_path)}: a secret on the command line can be read by everybody on "
                "the machine; give a reference such as ${NAME} or ${file:/path} instead"
            )
    if problems:
        return tree, problems
    try:
        return _with(tree, steps, value), []
    except LookupError as error:
        return tree, [f"--set {path.strip()}: {error.args[0]}"]


def path_steps(path: str) -> list[str]:
    """Return the keys that a dotted path walks through."""
    steps = path.split(".")
    if steps[0] == "kafka" and len(steps) > 2:
        return ["kafka", ".".join(steps[1:])]
    if steps[:2] == ["table", "properties"] and len(steps) > 3:
        return ["table", "properties", ".".join(steps[2:])]
    if steps[:3] == ["source", "start", "offsets"] and len(steps) > 5:
        return [*steps[:3], ".".join(steps[3:-1]), steps[-1]]
    return steps


def _leaves(value: object, path: Sequence[str]) -> Iterator[tuple[Sequence[str], object]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, [*path, str(key)])
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _leaves(below, [*path, str(index)])
    else:
        yield path, value


def _is_one_reference(value: object) -> bool:
    """Say whether `value` is a single reference and nothing else, not even a default."""
    match = _ONE_REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return match is not None and ":-" not in match[1]


def _with(tree: object, steps: Sequence[str], value: object) -> Tree:
    """Return a copy of the mapping `tree` in which the value at `steps` is laid over."""
    result = _with_step(tree, steps, value)
    assert isinstance(result, dict), "the top of a configuration is a mapping"
    return result


def _with_step(tree: object, steps: Sequence[str], value: object) -> object:
    if not steps:
        return merged(tree, value)
    step, rest = steps[0], steps[1:]
    if isinstance(tree, list):
        if not step.isdecimal() or int(step) > len(tree):
            raise LookupError(f"expected a list index from 0 to {len(tree)}, got '{step}'")
        items: list[object] = [*tree]
        below = items[int(step)] if int(step) < len(items) else None
        items[int(step) : int(step) + 1] = [_with_step(below, rest, value)]
        return items
    mapping: Tree = dict(tree) if isinstance(tree, Mapping) else {}
    key: object = int(step) if step.isdecimal() and int(step) in mapping else step
    mapping[key] = _with_step(mapping.get(key), rest, value)
    return mapping


# --- references --------------------------------------------------------------------------------


class _Resolver(Struct):
    env: Mapping[str, str]
    read_file: Callable[[str], str]
    problems: list[str]
    values: int = 0

    def walk(self, value: object, path: tuple[str, ...]) -> object:
        self.values += 1
        if len(path) > NESTING_MAX or self.values > VALUES_MAX:
            raise OverflowError
        if isinstance(value, Mapping):
            return {
                key: self.walk(below, (*path, str(key)))
                for key, below in value.items()
                if below is not None
            }
        if isinstance(value, list):
            return [self.walk(below, (*path, f"[{i}]")) for i, below in enumerate(value)]
        if isinstance(value, str):
            return self.text(value, ".".join(path).replace(".[", "["))
        return value

    def text(self, text: str, path: str) -> str:
        if "${" not in text:
            return text
        parts: list[str] = []
        end = 0
        replaced = False
        while (dollars := _DOLLARS.search(text, end)) is not None:
            parts += [text[end : dollars.start()], "$" * (len(dollars[0]) // 2)]
            end = dollars.end()
            if len(dollars[0]) % 2:
                braces = _BRACES.match(text, end)
                assert braces is not None, "the dollar signs are in front of a brace"
                parts.append(self.reference(braces[1], path, closed=bool(braces[2])))
                end = braces.end()
                replaced = True
        result = "".join([*parts, text[end:]])
        return Referenced(result) if replaced else result

    def reference(self, content: str, path: str, *, closed: bool) -> str:
        env = _ENV.fullmatch(content)
        folder = _DIR.fullmatch(content)
        if not closed:
            self.problem(path, f"a reference has no end or holds another one; {_LITERAL}")
        elif content.startswith("file:") and len(content) > len("file:"):
            return self.file(content.removeprefix("file:"), path)
        elif folder is not None and folder["key"] not in (".", ".."):
            return self.file(f"{folder['path'].rstrip('/')}/{folder['key']}", path)
        elif env is not None:
            return self.variable(env["name"], env["default"], path)
        else:
            self.problem(path, f"expected a reference like {_REFERENCE_FORMS}; {_LITERAL}")
        return ""

    def variable(self, name: str, default: str | None, path: str) -> str:
        value = self.env.get(name)
        if default is not None:
            return value or default.removeprefix(":-")
        if value is None:
            self.problem(path, f"the environment variable '{name}' is not set")
            return ""
        return value

    def file(self, name: str, path: str) -> str:
        try:
            text = self.read_file(name)
        except OSError as error:
            self.problem(path, f"cannot read '{name}': {error.strerror or 'it cannot be opened'}")
            return ""
        except ValueError:
            self.problem(path, f"cannot read '{name}': it is not UTF-8 text")
            return ""
        return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text

    def problem(self, path: str, sentence: str) -> None:
        self.problems.append(f"{path}: {sentence}")


def resolved(
    tree: Tree,
    problems: list[str],
    *,
    env: Mapping[str, str],
    read_file: Callable[[str], str],
) -> Tree:
    """Return `tree` with every reference in its values replaced and null values left out.

    Text that came from a reference is `Referenced`. In front of `{` two dollar signs mean one
    literal dollar sign; a dollar sign anywhere else is itself. Keys are never replaced.
    """
    try:
        result = _Resolver(env, read_file, problems).walk(tree, ())
    except OverflowError:
        problems.append(
            f"the configuration: more than {NESTING_MAX} levels or {VALUES_MAX} values, "
            "aliases counted each time"
        )
        return {}
    assert isinstance(result, dict), "a mapping stays a mapping"
    return result
