import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas_transfer.data.images import read_image, usable_images
from nas_transfer.errors import DataError


def save_jpeg(path: Path, keep: float = 1.0) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tiff"
    grey = np.full((5, 7), 255, dtype=np.uint8)
    Image.fromarray(grey).convert("RGB").convert(mode).save(path)
    image = read_image(path, follow_exif=True)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 5, 7)
    assert (image == 255).all()


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.array([[0, 128 * 256, 65535]], dtype=np.uint16)).save(path)
    assert read_image(path, follow_exif=True)[0].tolist() == [[0, 128, 255]]


def test_the_exif_orientation_is_followed_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert read_image(path, follow_exif=True).shape == (3, 40, 20)
    assert read_image(path, follow_exif=False).shape == (3, 20, 40)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    path = save_jpeg(tmp_path / "cut.jpg", keep)
    with pytest.raises(DataError, match=r"cut\.jpg is a broken or truncated image.*skip_broken"):
        read_image(path, follow_exif=False)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such image: .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg", follow_exif=False)
    with pytest.raises(DataError, match=r"no such image: .*gone\.jpg"):
        usable_images([save_jpeg(tmp_path / "here.jpg"), tmp_path / "gone.jpg"], skip_broken=False)


def test_broken_and_missing_files_are_left_out_and_counted_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [
        save_jpeg(tmp_path / "cut.jpg", 0.6),
        save_jpeg(tmp_path / "good.jpg"),
        tmp_path / "gone.jpg",
        save_jpeg(tmp_path / "cut.png", 0.6),
    ]
    with caplog.at_level(logging.WARNING):
        assert usable_images(paths, skip_broken=True) == [1]
    assert "left out 3 broken or missing of 4 images" in caplog.text
    assert "cut.jpg" in caplog.text
    with pytest.raises(DataError, match="all 1 images are broken or missing"):
        usable_images(paths[:1], skip_broken=True)
