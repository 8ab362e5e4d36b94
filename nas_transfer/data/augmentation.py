"""How training samples are augmented: one record per layout, with the values under `data.augmentation`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from nas_transfer.errors import ConfigError
from nas_transfer.ranges import PositiveNumber, PositiveShare, Range, Share


@dataclass(frozen=True)
class ClassificationAugmentation:
    """Random resized crop, horizontal flip and colour jitter; see `transforms.classification_train`.

    Attributes:
        min_crop_scale: smallest share of the area of an image that a crop covers, in (0, 1]; lower: stronger.
        color_jitter: strength of the colour jitter in [0, 1]; see `transforms.colour_jitter`.

    Raises:
        ConfigError: a value outside its range.
    """

    min_crop_scale: PositiveShare
    color_jitter: Share

    def __post_init__(self) -> None:
        _require_share("min_crop_scale", self.min_crop_scale, above_zero=True)
        _require_share("color_jitter", self.color_jitter)


@dataclass(frozen=True)
class DetectionAugmentation:
    """Horizontal flip, zoom and colour jitter of an image with its boxes and masks; see `transforms.DetectionTrain`.

    Attributes:
        flip: probability of a horizontal flip.
        photometric: strength of the colour jitter in [0, 1]; see `transforms.colour_jitter`.
        scale_jitter: the least and the greatest zoom, or None for no zoom.

    Raises:
        ConfigError: a value outside its range.
    """

    flip: Share
    photometric: Share
    scale_jitter: Sequence[PositiveNumber] | None

    def __post_init__(self) -> None:
        _require_share("flip", self.flip)
        _require_share("photometric", self.photometric)
        if self.scale_jitter is not None:
            object.__setattr__(self, "scale_jitter", _bounds("scale_jitter", self.scale_jitter))


@dataclass(frozen=True)
class SegmentationAugmentation:
    """Scale, crop, flip and distort the colours of an image with its labels; see `SegmentationTrain`.

    Attributes:
        scale_range: the least and the greatest factor of an image's size.
        max_class_share: crops in which one class covers more are drawn again, in (0, 1]; 1 takes every crop.
        flip: probability of a horizontal flip.
        photometric: whether to distort colours.

    Raises:
        ConfigError: a value outside its range.
    """

    scale_range: Sequence[PositiveNumber]
    max_class_share: PositiveShare
    flip: Share
    photometric: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale_range", _bounds("scale_range", self.scale_range))
        _require_share("max_class_share", self.max_class_share, above_zero=True)
        _require_share("flip", self.flip)


@dataclass(frozen=True)
class PoseAugmentation:
    """Flip, half body, shift, scale, rotation, colours and erased parts of a crop; see `pose_crops.CropAugmentation`.

    Attributes:
        flip: probability of a horizontal flip.
        half_body: probability of cropping the upper or the lower body alone, where enough of both is labelled
            (Wang et al. 2018, arXiv:1901.00148).
        shift: largest shift as a share of the crop, in three of ten samples.
        scale_range: the least and the greatest factor of the size of the crop.
        rotation: degrees; drawn from a normal distribution of half this deviation and cut off at it, in half of the
            samples.
        photometric: strength of the colour jitter in [0, 1]; see `transforms.colour_jitter`.
        erasing: probability of erasing a rectangle of 2 to 20 % of the crop (Zhong et al. 2017, arXiv:1708.04896).

    Raises:
        ConfigError: a value outside its range.
    """

    flip: Share
    half_body: Share
    shift: Share
    scale_range: Sequence[PositiveNumber]
    rotation: Annotated[float, Range(minimum=0, maximum=180)]
    photometric: Share
    erasing: Share

    def __post_init__(self) -> None:
        _require_share("flip", self.flip)
        _require_share("half_body", self.half_body)
        _require_share("photometric", self.photometric)
        _require_share("erasing", self.erasing)
        object.__setattr__(self, "scale_range", _bounds("scale_range", self.scale_range))


def _require_share(key: str, value: float, *, above_zero: bool = False) -> None:
    if not 0 <= value <= 1 or (above_zero and value == 0):
        interval = "(0, 1]" if above_zero else "[0, 1]"
        raise ConfigError(f"data.augmentation.{key} must lie in {interval}, got {value}")


def _bounds(key: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2 or not 0 < values[0] <= values[1]:
        raise ConfigError(
            f"data.augmentation.{key} must be two numbers [low, high] with 0 < low <= high, got {list(values)}"
        )
    return float(values[0]), float(values[1])
