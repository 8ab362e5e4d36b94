"""The text that `stage=check` prints: what is in a dataset, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from nas_transfer.runs import Check, Finding, PartSummary, TrainingEstimate
from nas_transfer.runs.costs import SECONDS_PER_HOUR
from nas_transfer.runs.texts import duration

PROBLEMS = {
    "broken": "broken, missing or mismatched files",
    "refused": "annotations that training refuses",
    "empty class": "classes that a part does not have",
    "leak": "images of val or of the search split that are also trained on",
    "few": "split too small to tell similar networks apart",
}
NOTES = {
    "repeated": "images that occur more than once",
    "outside": "boxes that leave their image",
    "tiny": "boxes of less than 4 pixels a side at the input size",
}
"""Titles of findings by kind; those of `PROBLEMS` alone count as problems."""
NOTES_SHOWN = 5
MOST_CLASSES = 40


def check_text(check: Check) -> str:
    """A check as lines for people: all problems, and the first notes of each kind."""
    lines = [f"{check.task} on {check.root}, read in {check.seconds:.0f} s; ranges: least - median - most"]
    if check.form:
        lines.append(f"form: {check.form}")
    for part, summary in check.parts.items():
        lines += _part_lines(part, summary)
    lines += _class_table(check.parts)
    for kinds, shown in ((NOTES, NOTES_SHOWN), (PROBLEMS, None)):
        for kind, title in kinds.items():
            lines += _finding_lines(kind, title, check.findings, shown)
            lines += _leak_lines(check) if kind == "leak" else []
    lines.append(
        f"training was not timed: {check.not_timed}" if check.training is None else _training_line(check.training)
    )
    lines.append(f"{check.num_problems} problem{'' if check.num_problems == 1 else 's'}")
    return "\n".join(lines)


def _part_lines(part: str, summary: PartSummary) -> list[str]:
    broken = f", {summary['broken']} of them broken" if summary["broken"] else ""
    search = f", {summary['search_images']} of them the search split" if "search_images" in summary else ""
    lines = [f"{part}: {summary['images']} images{broken}{search}"]
    if "width" in summary:
        lines.append(f"  width {_range(summary['width'])}, height {_range(summary['height'])} pixels")
    objects = summary.get("objects")
    if objects:
        lines.append(
            f"  {objects['count']} objects, {_range(objects['per_image'])} per image, "
            f"{objects['images_without']} images without; "
            f"{objects['small']} small (below 32x32), {objects['medium']} medium, {objects['large']} large (from 96x96)"
        )
        if objects.get("keypoints_per_person"):
            lines.append(f"  labelled keypoints per person: {_range(objects['keypoints_per_person'])}")
    if "ignored_share" in summary:
        lines.append(f"  {summary['ignored_share']:.2%} of the pixels are ignored")
    return lines


def _range(values: Sequence[float] | None) -> str:
    if values is None:
        return "-"
    least, middle, most = values
    return f"{least:g}" if least == most else f"{least:g} - {middle:g} - {most:g}"


def _class_table(parts: Mapping[str, PartSummary]) -> list[str]:
    """Images with each class, and objects or pixels of it, in each part."""
    tables = {part: summary["classes"] for part, summary in parts.items() if "classes" in summary}
    if not tables:
        return []
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    shares = any("pixel_share" in entry for table in tables.values() for entry in table.values())
    column = "pixels" if shares else "count"
    width = max(len(name) for name in [*names, "class"])
    lines = [f"{'class':<{width}}" + "".join(f"{part + ' images':>14}{part + ' ' + column:>14}" for part in tables)]
    for name in names[:MOST_CLASSES]:
        cells = ""
        for table in tables.values():
            entry = table.get(name, {"images": 0, "count": 0, "pixel_share": 0.0})
            value = f"{entry['pixel_share']:.2%}" if shares else str(entry["count"])
            cells += f"{entry['images']:>14}{value:>14}"
        lines.append(f"{name:<{width}}{cells}")
    if len(names) > MOST_CLASSES:
        lines.append(f"... and {len(names) - MOST_CLASSES} more classes")
    return lines


def _finding_lines(kind: str, title: str, findings: Sequence[Finding], shown: int | None) -> list[str]:
    of_kind = [finding for finding in findings if finding.kind == kind]
    if not of_kind:
        return []
    lines = [f"{len(of_kind)} {title}:"]
    if kind == "empty class":  # one line per part, since there may be dozens
        for part in dict.fromkeys(finding.part for finding in of_kind):
            lines.append(f"  {part}: " + ", ".join(finding.name for finding in of_kind if finding.part == part))
        return lines
    lines += [f"  {finding.part}: {finding.text}" for finding in of_kind[:shown]]
    if shown is not None and len(of_kind) > shown:
        lines.append(f"  ... and {len(of_kind) - shown} more")
    return lines


def _leak_lines(check: Check) -> list[str]:
    """How much of each scored part leaks."""
    sizes = {part: summary["images"] for part, summary in check.parts.items()}
    sizes["search"] = check.parts["train"].get("search_images", 0) if "train" in check.parts else 0
    counts = Counter(finding.part for finding in check.findings if finding.kind == "leak")
    return [
        f"  in all {count} of the {sizes[part]} images of {part} ({count / sizes[part]:.1%}), "
        f"whose score may be {100 * count / sizes[part]:.1f} points too high: remove them from one of the two"
        for part, count in counts.items()
        if sizes.get(part)
    ]


def _training_line(training: TrainingEstimate) -> str:
    whole = duration(SECONDS_PER_HOUR * training.hours)
    return (
        f"training arch={training.arch} on one {training.device}: {training.step_seconds:.2f} s per step of "
        f"{training.batch} images, {whole} for {training.steps} steps ({training.epochs:.1f} epochs) without "
        f"scoring, from the median of {training.steps_timed} steps; peak memory {training.peak_memory_gb:.1f} GB"
    )
