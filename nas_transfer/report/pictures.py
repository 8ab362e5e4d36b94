"""Pictures of predictions that runs drew, small, inside the page."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from nas_transfer.report.plots import Figure
from nas_transfer.runs import Analysis, files

SMALL, LARGE = 360, 664
"""Width of a picture in pixels: of one of many runs, of the best one."""
MOST_PICTURES = 4
TITLES = {
    files.SAMPLES_FOLDER: "Validation image: annotated, predicted",
    files.OVERLAYS_FOLDER: "Predicted",
}


def prediction_figures(folder: Path, width: int = SMALL) -> list[Figure]:
    """The first pictures of a run: validation images beside their annotations, or overlays of images without any.

    Pictures that cannot be read are left out.
    """
    figures = [
        _figure(path, TITLES[name], width)
        for name, paths in files.picture_files(folder)
        for path in paths[:MOST_PICTURES]
    ]
    return [figure for figure in figures if figure is not None]


def worst_figures(folder: Path, analysis: Analysis, width: int = LARGE) -> list[Figure]:
    """The worst images that a run drew: annotated and predicted, each with its file and what is wrong."""
    figures = [
        _figure(
            folder / files.ANALYSIS_FOLDER / f"{files.WORST_PREFIX}{number}.jpg", f"{image.file}: {image.text}", width
        )
        for number, image in enumerate(analysis.worst, start=1)
    ]
    return [figure for figure in figures if figure is not None]


def _figure(path: Path, title: str, width: int) -> Figure | None:
    """A picture as SVG around an inline JPEG."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError):
        return None
    picture.thumbnail((width, picture.height))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    text = base64.b64encode(stream.getvalue()).decode()
    svg = (
        f'<svg viewBox="0 0 {picture.width} {picture.height}" role="img" aria-label="{escape(title)}">'
        f'<image width="{picture.width}" height="{picture.height}" href="data:image/jpeg;base64,{text}"/></svg>'
    )
    return Figure(title, svg, note=str(path))
