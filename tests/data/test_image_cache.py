"""Decoded images in memory: every layout gives the same samples with and without them, within the limit."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from nas_transfer.data.image_cache import MIB, ImageCache
from nas_transfer.data.images import read_image
from nas_transfer.errors import DataError
from tests.data.conftest import Builder, save_noise
from tests.data.test_coco_keypoints import data as person_data
from tests.data.test_coco_keypoints import root  # noqa: F401  a fixture
from tests.data.test_label_maps import data as map_data
from tests.data.test_label_maps import twins  # noqa: F401  a fixture


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Six images of 3 x 10 x 10 bytes."""
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        save_noise(path, 10, 10, number)
    return paths


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


def two_epochs(data: Any) -> list[torch.Tensor]:
    """Everything that two epochs of training and two of evaluation give."""
    found = []
    for epoch in range(2):
        loader = data.train_dataloader()
        data.train_sampler.set_position(epoch, 0)
        found += tensors(list(loader)) + tensors(list(data.val_dataloader()))
    return found


def require_same(build: Any) -> None:
    plain, kept = build(), build(cache_mib=1)
    assert plain.read_image.__self__.num_images == 0
    for first, second in zip(two_epochs(plain), two_epochs(kept), strict=True):
        assert torch.equal(first, second)
    assert kept.read_image.__self__.num_images > 0


def test_classified_images_are_the_same(folder_root: Path, folder_data: Builder) -> None:
    require_same(lambda **changes: folder_data(folder_root, **changes))


def test_images_with_objects_are_the_same(coco_root: Path, coco_data: Builder) -> None:
    options = {"scale_jitter": [0.5, 2.0], "photometric": 0.3, "with_masks": True}
    require_same(lambda **changes: coco_data(coco_root, **options, **changes))


def test_label_maps_are_the_same(twins: Path) -> None:  # noqa: F811
    require_same(lambda **changes: map_data(twins, **changes))


def test_persons_are_the_same(root: Path) -> None:  # noqa: F811
    require_same(lambda **changes: person_data(root, **changes))


def test_loading_processes_change_nothing(folder_root: Path, folder_data: Builder) -> None:
    alone, helped = folder_data(folder_root), folder_data(folder_root, cache_mib=1, num_workers=2)
    for first, second in zip(two_epochs(alone), two_epochs(helped), strict=True):
        assert torch.equal(first, second)


def test_an_image_is_read_once_and_the_pixels_of_the_cache_cannot_be_changed(pictures: list[Path]) -> None:
    cache = ImageCache(MIB)
    expected = read_image(pictures[0], follow_exif=True)
    first = cache.read(pictures[0], follow_exif=True)
    pictures[0].unlink()
    first.zero_()
    second = cache.read(pictures[0], follow_exif=True)
    assert torch.equal(second, expected)
    second.zero_()
    assert torch.equal(cache.read(pictures[0], follow_exif=True), expected)
    with pytest.raises(DataError, match="no such image"):
        cache.read(pictures[0], follow_exif=False)  # another image, where a camera was turned


def test_no_more_than_the_limit_is_kept_and_the_log_says_what(
    pictures: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cache = ImageCache(1000)
    for path in pictures:
        assert torch.equal(cache.read(path, follow_exif=True), read_image(path, follow_exif=True))
    assert cache.num_images == 3
    assert [record.getMessage() for record in caplog.records] == [
        "data.cache_mib=0 is full: 3 decoded images (0 MiB) are kept, others are read in each epoch"
    ]


def test_a_cleared_cache_is_empty_and_keeps_images_again(pictures: list[Path]) -> None:
    cache = ImageCache(1000)
    for path in pictures:
        cache.read(path, follow_exif=True)
    cache.clear()
    assert cache.num_images == 0
    for path in pictures:
        cache.read(path, follow_exif=True)
    assert cache.num_images == 3


def test_loading_processes_share_the_limit(pictures: list[Path]) -> None:
    class Counting(torch.utils.data.Dataset):
        cache = ImageCache(1200)

        def __getitem__(self, index: int) -> int:
            self.cache.read(pictures[index], follow_exif=True)
            return self.cache.num_images

        def __len__(self) -> int:
            return len(pictures)

    assert max(torch.cat(list(DataLoader(Counting(), batch_size=1, num_workers=2))).tolist()) == 2  # of 600 bytes each


def test_a_copy_for_another_process_keeps_nothing(pictures: list[Path]) -> None:
    cache = ImageCache(MIB)
    cache.read(pictures[0], follow_exif=True)
    copied = pickle.loads(pickle.dumps(cache))
    assert (copied.limit, copied.num_images) == (MIB, 0)
