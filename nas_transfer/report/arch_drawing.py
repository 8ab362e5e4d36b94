"""A picture of an arch: its stages from the image down, each with its blocks, kernels, expand ratios and width.

It is SVG by hand for the reasons that `plots` gives; there is no chart type for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from nas_transfer.arch import short_id
from nas_transfer.report.plots import WIDTH, Figure
from nas_transfer.runs import ArchContent
from nas_transfer.runs.reading import parse

ROW, LABEL, BAR = 26, 52, 76
LARGEST_KERNEL, LARGEST_EXPAND = 7, 6
GENES_IN_A_ROW = 10


@dataclass(frozen=True)
class StageRow:
    """One stage of a supernet's configuration, as far as a drawing needs it.

    Attributes:
        name: name of the stage.
        depth: choices of the number of blocks.
        per_block: whether each block has genes of its own.
    """

    name: str = ""
    depth: tuple[int, ...] = ()
    per_block: bool = False


@dataclass(frozen=True)
class DrawnStage:
    """One row: name, (kernel size, expand ratio) of each block, output width; a single convolution has no blocks."""

    name: str
    blocks: tuple[tuple[int, int], ...]
    width: int


def stage_rows(config: Mapping[str, object]) -> tuple[StageRow, ...]:
    """The stages of a run's supernet; none if its configuration does not list them."""
    stages = config.get("supernet.stages")
    if not isinstance(stages, list) or not all(isinstance(stage, Mapping) for stage in stages):
        return ()
    try:
        return tuple(parse(StageRow, stage) for stage in stages)
    except ValueError:  # a supernet of another kind
        return ()


def arch_text(arch: ArchContent) -> str:
    """An arch in one line."""
    groups = [
        f"{group} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for group, value in arch.items()
        if group != "space"
    ]
    return f"{arch.get('space', 'arch')} {short_id(arch)}: {'; '.join(groups)}"


def drawn_stages(arch: ArchContent, stages: Sequence[StageRow]) -> list[DrawnStage] | None:
    """The rows of an arch of width, depth, kernel_size and expand_ratio; None for another kind of arch.

    Widths are given of the stages, or also of the convolutions before and behind them.

    Args:
        arch: dict form.
        stages: stages of the supernet, empty if unknown.
    """
    depths, widths = _integers(arch.get("depth")), _integers(arch.get("width"))
    if depths is None or not widths or len(widths) not in (len(depths), len(depths) + 2) or min(widths) < 1:
        return None
    kernels = _by_block(arch.get("kernel_size"), depths, stages)
    expands = _by_block(arch.get("expand_ratio"), depths, stages)
    if kernels is None or expands is None:
        return None
    names = [stage.name for stage in stages] if len(stages) == len(depths) else []
    rows: list[DrawnStage] = []
    of_stages = widths if len(widths) == len(depths) else widths[1:-1]
    for index, (kernel, expand, width) in enumerate(zip(kernels, expands, of_stages, strict=True)):
        name = names[index] if names else f"stage {index + 1}"
        rows.append(DrawnStage(name, tuple(zip(kernel, expand, strict=True)), width))
    if of_stages is widths:
        return rows
    return [DrawnStage("first", (), widths[0]), *rows, DrawnStage("last", (), widths[-1])]


def _integers(values: object) -> list[int] | None:
    """A list of integers, None for anything else."""
    return values if isinstance(values, list) and all(isinstance(value, int) for value in values) else None


def _by_block(genes: object, depths: Sequence[int], stages: Sequence[StageRow]) -> list[list[int]] | None:
    """The value of a gene group in each block that is kept: (S, depth); the genes are given by stage or by block."""
    values = _integers(genes)
    if values is None:
        return None
    if len(values) == len(depths):
        return [[value] * depth for value, depth in zip(values, depths)]
    counts = [max(stage.depth, default=0) if stage.per_block else 1 for stage in stages]
    if len(counts) != len(depths) or sum(counts) != len(values):
        return None
    by_block, start = [], 0
    for stage, count, depth in zip(stages, counts, depths):
        by_block.append(values[start : start + depth] if stage.per_block else [values[start]] * depth)
        start += count
    return by_block


def draw_arch(arch: ArchContent, stages: Sequence[StageRow], title: str) -> Figure:
    """Draw an arch; one of another kind is drawn as rows of the values of its genes."""
    rows = drawn_stages(arch, stages)
    if rows is None:
        parts, height = _draw_genes(arch)
        note = "values of the genes"
    else:
        parts, height = _draw_stages(rows)
        note = "block: kernel size (height) and expand ratio (shade); bar: output channels (square root)"
    single = [f"{name} {value}" for name, value in arch.items() if isinstance(value, int)]
    genes = "".join(f"{text}; " for text in single) if rows is not None else ""
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Figure(title, svg, (), f"{arch.get('space', '')} {short_id(arch)}; {genes}{note}")


def _draw_stages(rows: Sequence[DrawnStage]) -> tuple[list[str], int]:
    most_blocks = max(1, *(len(row.blocks) for row in rows))
    step = min(50.0, (WIDTH - LABEL - BAR - 12) / most_blocks)
    widest = max(row.width for row in rows)
    parts = []
    for index, row in enumerate(rows):
        middle = index * ROW + ROW / 2
        parts.append(f'<text class="tick" x="2" y="{middle + 4}">{escape(row.name)}</text>')
        if not row.blocks:
            parts.append(f'<text class="tick" x="{LABEL}" y="{middle + 4}">convolution</text>')
        parts += _draw_blocks(row, middle, step)
        left = WIDTH - BAR
        length = max(2.0, (BAR - 36) * (row.width / widest) ** 0.5)
        parts.append(f'<rect class="bar" x="{left}" y="{middle - 4}" width="{length:.1f}" height="8"/>')
        parts.append(f'<text class="tick" x="{WIDTH - 2}" y="{middle + 4}" text-anchor="end">{row.width}</text>')
    return parts, len(rows) * ROW


def _draw_blocks(row: DrawnStage, middle: float, step: float) -> list[str]:
    parts = []
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
    return parts


def _draw_genes(arch: ArchContent) -> tuple[list[str], int]:
    parts, row = [], 0
    for group, value in arch.items():
        if group == "space":
            continue
        values = value if isinstance(value, list) else [value]
        for start in range(0, len(values), GENES_IN_A_ROW):
            middle = row * ROW + ROW / 2
            label = group if start == 0 else ""
            parts.append(f'<text class="tick" x="2" y="{middle + 4}">{escape(label[:14])}</text>')
            for number, choice in enumerate(values[start : start + GENES_IN_A_ROW]):
                x = 90 + number * 26
                parts.append(
                    f'<rect class="block" x="{x}" y="{middle - 9}" width="24" height="18" rx="2" '
                    f'style="fill-opacity:.2"/><text class="tick in" x="{x + 12}" y="{middle + 4}" '
                    f'text-anchor="middle">{escape(str(choice))}</text>'
                )
            row += 1
    return parts, max(1, row) * ROW
