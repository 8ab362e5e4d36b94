import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_transfer.data.images import read_image
from nas_transfer.data.transforms import classification_eval
from nas_transfer.errors import DataError

Builder = Callable[..., Any]


def epoch_of(data: Any, epoch: int, start_batch: int = 0) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    data.train_sampler.set_position(epoch, start_batch)
    return list(loader)


def same(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a
    )


def test_classes_labels_and_images_are_those_on_disk(folder_root: Path, folder_data: Builder) -> None:
    data = folder_data(folder_root)
    data.setup()
    assert data.class_names == ("ant", "bee")
    assert data.num_classes == 2
    assert data.num_train_images == 16
    batches = list(data.val_dataloader())
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.cat([batch["sample_ids"] for batch in batches]).tolist() == list(range(6))
    expected = classification_eval(16, 0.875, "bicubic")(
        read_image(folder_root / "val" / "ant" / "1.png", follow_exif=True)
    )
    assert torch.equal(batches[0]["images"][1], expected)
    assert batches[0]["images"].dtype == torch.uint8


def test_workers_change_nothing(folder_root: Path, folder_data: Builder) -> None:
    alone, helped = folder_data(folder_root), folder_data(folder_root, num_workers=2)
    assert same(epoch_of(alone, 1), epoch_of(helped, 1))


def test_a_resumed_epoch_continues_with_the_same_batches(folder_root: Path, folder_data: Builder) -> None:
    whole = epoch_of(folder_data(folder_root), 2)
    assert same(epoch_of(folder_data(folder_root), 2, start_batch=1), whole[1:])
    assert not same(epoch_of(folder_data(folder_root), 3), whole)


def test_iterating_a_loader_leaves_the_global_generator_alone(folder_root: Path, folder_data: Builder) -> None:
    data = folder_data(folder_root)
    before = torch.random.get_rng_state()
    epoch_of(data, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_search_split_is_held_out_when_asked_and_never_calibrated_on(
    folder_root: Path, folder_data: Builder
) -> None:
    def ids(loader: Any) -> list[int]:
        return sorted(torch.cat([batch["sample_ids"] for batch in loader]).tolist())

    held_out, whole = folder_data(folder_root, hold_out_search=True), folder_data(folder_root)
    search = ids(held_out.search_dataloader())
    assert len(search) == 4
    assert search == ids(whole.search_dataloader())
    rest = sorted(set(range(16)) - set(search))
    assert ids(held_out.train_dataloader()) == rest
    assert held_out.num_train_images == 12
    assert ids(whole.train_dataloader()) == list(range(16))
    assert ids(whole.calibration_dataloader(100, 5)) == ids(held_out.calibration_dataloader(100, 5)) == rest
    few = [batch["sample_ids"].tolist() for batch in whole.calibration_dataloader(7, 5)]
    assert [len(batch) for batch in few] == [5, 2]
    assert few == [batch["sample_ids"].tolist() for batch in folder_data(folder_root).calibration_dataloader(7, 5)]


def test_a_held_out_split_does_not_change_an_images_augmentation(folder_root: Path, folder_data: Builder) -> None:
    def by_id(data: Any) -> dict[int, torch.Tensor]:
        return {
            int(number): image
            for batch in epoch_of(data, 0)
            for number, image in zip(batch["sample_ids"], batch["images"], strict=True)
        }

    whole, held_out = by_id(folder_data(folder_root)), by_id(folder_data(folder_root, hold_out_search=True))
    assert all(torch.equal(image, whole[number]) for number, image in held_out.items())


def test_evaluation_works_without_train(folder_root: Path, folder_data: Builder) -> None:
    shutil.rmtree(folder_root / "train")
    data = folder_data(folder_root)
    assert data.num_classes == 2
    assert data.num_train_images == 0
    assert len(list(data.val_dataloader())) == 2
    with pytest.raises(DataError, match=r"no such folder: .*train"):
        data.train_dataloader()


def test_a_class_list_gives_the_label_order(folder_root: Path, folder_data: Builder) -> None:
    (folder_root / "names.txt").write_text("bee\ncat\nant\n")
    data = folder_data(folder_root, class_list="names.txt")
    assert data.class_names == ("bee", "cat", "ant")
    assert torch.cat([batch["labels"] for batch in data.val_dataloader()]).tolist() == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize("name", ["../val/ant", "/etc", ".."])
def test_a_class_list_names_no_folder_elsewhere(folder_root: Path, folder_data: Builder, name: str) -> None:
    (folder_root / "names.txt").write_text(f"bee\n{name}\nant\n")
    with pytest.raises(DataError, match=r"each line of .*names\.txt must name a class folder"):
        folder_data(folder_root, class_list="names.txt").setup()


def test_a_class_that_train_does_not_have_is_refused(folder_root: Path, folder_data: Builder) -> None:
    (folder_root / "val" / "bee").rename(folder_root / "val" / "wasp")
    with pytest.raises(DataError, match=r"the folder 'wasp' of .*val must be one of the 2 classes"):
        folder_data(folder_root).setup()


def test_missing_folders_and_empty_classes_are_named(folder_root: Path, folder_data: Builder) -> None:
    with pytest.raises(DataError, match=r"no such folder: .*elsewhere.val"):
        folder_data(folder_root / "elsewhere").setup()
    (folder_root / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"no images in .*cat"):
        folder_data(folder_root).setup()


def test_a_broken_image_is_an_error_or_left_out(folder_root: Path, folder_data: Builder) -> None:
    broken = folder_root / "train" / "ant" / "3.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    with pytest.raises(DataError, match=r"ant.3\.png"):
        epoch_of(folder_data(folder_root), 0)
    data = folder_data(folder_root, skip_broken=True)
    ids = torch.cat([batch["sample_ids"] for batch in epoch_of(data, 0)]).tolist()
    assert data.num_train_images == 15
    assert 3 not in ids
    search = torch.cat([batch["sample_ids"] for batch in data.search_dataloader()]).tolist()
    broken.write_bytes(whole)
    sound = torch.cat([batch["sample_ids"] for batch in folder_data(folder_root).search_dataloader()]).tolist()
    assert set(search) == set(sound) - {3}  # leaving one out does not move the split


def test_the_draw_function_is_called_with_the_root(tmp_path: Path, folder_data: Builder) -> None:
    called: list[str] = []
    folder_data(tmp_path, draw=called.append).prepare_data()
    assert called == [str(tmp_path)]


def test_real_image_folders_load(shared_data: Path, folder_data: Builder) -> None:
    data = folder_data(shared_data / "flowers5", batch_size=16)
    data.setup()
    assert data.class_names == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert data.num_train_images == 600
    assert next(iter(data.val_dataloader()))["images"].shape == (16, 3, 16, 16)
    sample = folder_data(shared_data / "imagenet_sample", class_list="wnids.txt")
    assert sample.num_classes == 1000
