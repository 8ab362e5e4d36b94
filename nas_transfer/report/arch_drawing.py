"""A picture of an arch: its stages from the image down, each with its blocks, kernels, expand ratios and width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from nas_transfer.report.plots import WIDTH, Figure
from nas_transfer.space import short_id

ROW, LABEL, BAR = 26, 52, 76
LARGEST_KERNEL, LARGEST_EXPAND = 7, 6


@dataclass(frozen=True)
class StageOfBlocks:
    """One row: name, (kernel size, expand ratio) of each block, output width; a convolution alone has no blocks."""

    name: str
    blocks: tuple[tuple[int, int], ...]
    width: int


def arch_words(arch: Mapping[str, Any]) -> str:
    """An arch in one line."""
    groups = [
        f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in arch.items()
        if key != "space"
    ]
    return f"{arch.get('space', 'arch')} {short_id(arch)}: " + "; ".join(groups)


def stages_of(arch: Mapping[str, Any], table: Sequence[Mapping[str, Any]] | None) -> list[StageOfBlocks] | None:
    """The rows of an arch of width, depth, kernel_size and expand_ratio; None for another kind of arch.

    Args:
        table: the supernet's stages as its configuration gives them, None if unknown.
    """
    depths = arch.get("depth")
    widths = arch.get("width")
    if not isinstance(depths, list) or not isinstance(widths, list) or len(widths) != len(depths) + 2:
        return None
    if not all(isinstance(width, int) and width > 0 for width in widths):
        return None
    kernels = _by_stage(arch.get("kernel_size"), depths, table)
    expands = _by_stage(arch.get("expand_ratio"), depths, table)
    if kernels is None or expands is None:
        return None
    names = [str(row.get("name")) for row in table] if table and len(table) == len(depths) else []
    rows = [StageOfBlocks("first", (), widths[0])]
    for place, (kernel, expand, width) in enumerate(zip(kernels, expands, widths[1:-1], strict=True)):
        name = names[place] if names else f"stage {place + 1}"
        rows.append(StageOfBlocks(name, tuple(zip(kernel, expand, strict=True)), width))
    return [*rows, StageOfBlocks("last", (), widths[-1])]


def _by_stage(values: Any, depths: list[int], table: Sequence[Mapping[str, Any]] | None) -> list[list[int]] | None:
    """A gene group's value of each block that is there: (S, depth); given by stage or by block."""
    if not isinstance(values, list) or not all(isinstance(value, int) for value in [*values, *depths]):
        return None
    if len(values) == len(depths):
        return [[value] * depth for value, depth in zip(values, depths)]
    most = [max(row["depth"]) if isinstance(row.get("depth"), list) else 0 for row in table or ()]
    per_block = [bool(row.get("per_block")) for row in table or ()]
    counts = [deepest if own else 1 for deepest, own in zip(most, per_block)]
    if len(counts) != len(depths) or sum(counts) != len(values):
        return None
    found, start = [], 0
    for count, own, depth in zip(counts, per_block, depths):
        found.append(values[start : start + depth] if own else [values[start]] * depth)
        start += count
    return found


def draw_arch(arch: Mapping[str, Any], table: Sequence[Mapping[str, Any]] | None, title: str) -> Figure:
    """The drawing; an arch of another kind is drawn as rows of its genes' values."""
    rows = stages_of(arch, table)
    parts: list[str]
    if rows is None:
        parts, height = _gene_rows(arch)
        note = "values of the genes"
    else:
        parts, height = _stage_rows(rows)
        note = "block: kernel size (height) and expand ratio (shade); bar: output channels (square root)"
    resolution = f"resolution gene {arch['resolution']}; " if "resolution" in arch else ""
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Figure(title, svg, (), f"{arch.get('space', '')} {short_id(arch)}; {resolution}{note}")


def _stage_rows(rows: Sequence[StageOfBlocks]) -> tuple[list[str], int]:
    most = max(1, *(len(row.blocks) for row in rows))
    room = WIDTH - LABEL - BAR - 12
    step = min(50.0, room / most)
    widest = max(row.width for row in rows)
    parts = []
    for place, row in enumerate(rows):
        middle = place * ROW + ROW / 2
        parts.append(f'<text class="tick" x="2" y="{middle + 4}">{escape(row.name)}</text>')
        if not row.blocks:
            parts.append(f'<text class="tick" x="{LABEL}" y="{middle + 4}">convolution</text>')
        for number, (kernel, expand) in enumerate(row.blocks):
            height = 8 + 12 * min(kernel, LARGEST_KERNEL) / LARGEST_KERNEL
            shade = 0.12 + 0.5 * min(expand, LARGEST_EXPAND) / LARGEST_EXPAND
            x = LABEL + number * step
            text = f"k{kernel} e{expand}" if step >= 40 else f"{kernel}·{expand}"
            parts.append(
                f'<rect class="block" x="{x:.1f}" y="{middle - height / 2:.1f}" width="{step - 3:.1f}" '
                f'height="{height:.1f}" rx="2" style="fill-opacity:{shade:.2f}"><title>{escape(row.name)}, block '
                f"{number + 1}: kernel {kernel}, expand {expand}, width {row.width}</title></rect>"
                f'<text class="tick in" x="{x + (step - 3) / 2:.1f}" y="{middle + 4}" text-anchor="middle">'
                f"{text}</text>"
            )
        left = WIDTH - BAR
        length = max(2.0, (BAR - 36) * (row.width / widest) ** 0.5)
        parts.append(f'<rect class="bar" x="{left}" y="{middle - 4}" width="{length:.1f}" height="8"/>')
        parts.append(f'<text class="tick" x="{WIDTH - 2}" y="{middle + 4}" text-anchor="end">{row.width}</text>')
    return parts, len(rows) * ROW


def _gene_rows(arch: Mapping[str, Any]) -> tuple[list[str], int]:
    parts, place = [], 0
    for group, value in arch.items():
        if group == "space":
            continue
        values = value if isinstance(value, list) else [value]
        for start in range(0, len(values), 10):
            middle = place * ROW + ROW / 2
            label = group if start == 0 else ""
            parts.append(f'<text class="tick" x="2" y="{middle + 4}">{escape(label[:14])}</text>')
            for number, own in enumerate(values[start : start + 10]):
                x = 90 + number * 26
                parts.append(
                    f'<rect class="block" x="{x}" y="{middle - 9}" width="24" height="18" rx="2" '
                    f'style="fill-opacity:.2"/><text class="tick in" x="{x + 12}" y="{middle + 4}" '
                    f'text-anchor="middle">{escape(str(own))}</text>'
                )
            place += 1
    return parts, max(1, place) * ROW
