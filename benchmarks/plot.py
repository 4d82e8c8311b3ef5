"""Line charts as SVG, written by hand: panels one below the other over one axis of time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 840
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 28, 64, 52
_PANEL_HEIGHT: Final = 230
_PANEL_GAP: Final = 92
_TICKS: Final = 6
_GRID, _TEXT, _MUTED = "#e3e6ea", "#1f2933", "#616e7c"
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its points as (x, y), in order of x. `dash` is SVG's, empty for a solid line."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str
    dash: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines with one y axis, which begins at 0."""

    title: str
    y_unit: str
    lines: tuple[Line, ...]


def line_charts(title: str, subtitle: str, x_unit: str, panels: Sequence[Panel]) -> str:
    """Return an SVG document with the panels one below the other; all x begin at 0."""
    height = _TOP + len(panels) * (_PANEL_HEIGHT + _PANEL_GAP) - _PANEL_GAP + _BOTTOM + 40
    x_max = max(x for panel in panels for line in panel.lines for x, _ in line.points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"',
        f'width="{WIDTH}" height="{height}" font-family="{_FONT}" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 28, title, size=17, weight=600),
        _text(_LEFT, 48, subtitle, colour=_MUTED),
    ]
    for number, panel in enumerate(panels):
        top = _TOP + 40 + number * (_PANEL_HEIGHT + _PANEL_GAP)
        parts += _panel(panel, top, x_max, x_unit)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: float, x_max: float, x_unit: str) -> Iterator[str]:
    highest = max(y for line in panel.lines for _, y in line.points)
    y_ticks, x_ticks = ticks(highest), ticks(x_max)
    y_max = max(y_ticks[-1], highest)
    bottom, right = top + _PANEL_HEIGHT, WIDTH - _RIGHT

    def x_of(x: float) -> float:
        return _LEFT + x / x_max * (right - _LEFT)

    def y_of(y: float) -> float:
        return bottom - y / y_max * _PANEL_HEIGHT

    yield _text(_LEFT, top - 28, panel.title, size=14, weight=600)
    yield from _legend(panel.lines, top - 10)
    for y in y_ticks:
        yield _rule(_LEFT, y_of(y), right, y_of(y))
        yield _text(_LEFT - 8, y_of(y) + 4, _number(y), anchor="end", colour=_MUTED)
    for x in x_ticks:
        if x <= x_max:
            yield _rule(x_of(x), bottom, x_of(x), bottom + 5)
            yield _text(x_of(x), bottom + 19, _number(x), anchor="middle", colour=_MUTED)
    middle = (_LEFT + right) / 2
    yield _text(middle, bottom + 36, x_unit, anchor="middle", colour=_MUTED)
    y_middle = (top + bottom) / 2
    yield (
        f'<text transform="translate(20 {y_middle:.0f}) rotate(-90)" text-anchor="middle" '
        f'fill="{_MUTED}">{escape(panel.y_unit)}</text>'
    )
    for line in panel.lines:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        yield (
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2" '
            f'stroke-linejoin="round"{_dash(line)}/>'
        )


def _legend(lines: Sequence[Line], y: float) -> Iterator[str]:
    x = float(_LEFT)
    for line in lines:
        yield (
            f'<line x1="{x:.0f}" y1="{y - 4:.0f}" x2="{x + 26:.0f}" y2="{y - 4:.0f}" '
            f'stroke="{line.colour}" stroke-width="2"{_dash(line)}/>'
        )
        yield _text(x + 32, y, line.name)
        x += 32 + 6.8 * len(line.name) + 20


def ticks(highest: float) -> list[float]:
    """Return round numbers from 0 to the first at or above `highest`, about six of them."""
    if highest <= 0:
        return [0.0, 1.0]
    raw = highest / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _dash(line: Line) -> str:
    return f' stroke-dasharray="{line.dash}"' if line.dash else ""


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_GRID}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
    colour: str = _TEXT,
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{colour}">{escape(text)}</text>'
    )
