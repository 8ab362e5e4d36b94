"""Pictures of predictions that runs left, small, inside the page."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from nas_transfer.report.collect import SAMPLES_FOLDER
from nas_transfer.report.plots import Figure

SMALL, LARGE = 360, 664
"""Width of a picture in pixels: of one of many runs, of the best one."""
MOST_PICTURES = 4
SUFFIXES = (".jpg", ".jpeg", ".png")


def prediction_figures(folder: Path, width: int = SMALL) -> list[Figure]:
    """What a run drew: validation images beside their annotations, or overlays of images of no data set.

    The first ones; those that cannot be read are left out.
    """
    found = []
    for name, title in ((SAMPLES_FOLDER, "Validation image: annotated, predicted"), ("overlays", "Predicted")):
        files = sorted(path for path in folder.glob(f"{name}/*") if path.suffix in SUFFIXES)
        found += [_figure(path, title, width) for path in files[:MOST_PICTURES]]
    return [figure for figure in found if figure is not None]


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
