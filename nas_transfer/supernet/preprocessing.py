"""How images are prepared for a supernet's weights."""

from __future__ import annotations

from dataclasses import dataclass

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.fields import as_tuple, is_number

INTERPOLATIONS = ("bilinear", "bicubic")
CHANNEL_ORDERS = ("rgb", "bgr")
LARGEST_PIXEL = 255
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class Preprocessing:
    """How an image is normalised: ``(channel - mean) / std`` for each channel, in the order `channel_order`.

    Args:
        mean, std: pixel values in 0-255, in the order of the channels.
        channel_order: ``rgb`` or ``bgr``.
        interpolation: used to resize image files for classification, ``bilinear`` or ``bicubic``.
        resolution_interpolation: used to resize a batch to the resolution of an arch; None for that of `interpolation`.

    Raises:
        ConfigError: a field is malformed; the message names it.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str = "rgb"
    interpolation: str = "bicubic"
    resolution_interpolation: str | None = None

    @property
    def text(self) -> str:
        """Mean, std, order of the channels and interpolation in words."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std} of {self.channel_order.upper()} 0-255, {self.interpolation}"

    def __post_init__(self) -> None:
        for field in ("mean", "std"):
            values = as_tuple(getattr(self, field), f"preprocessing.{field}")
            if len(values) != IMAGE_CHANNELS or not all(is_number(v) and 0 <= v <= LARGEST_PIXEL for v in values):
                raise ConfigError(
                    f"supernet.preprocessing.{field} must be three pixel values in 0-255, got {list(values)}: "
                    "multiply fractions by 255"
                )
            object.__setattr__(self, field, tuple(float(value) for value in values))
        if min(self.std) < 1:
            raise ConfigError(
                f"supernet.preprocessing.std must be at least 1, got {list(self.std)}: multiply fractions by 255"
            )
        if self.resolution_interpolation is None:
            object.__setattr__(self, "resolution_interpolation", self.interpolation)
        for field, choices in (
            ("channel_order", CHANNEL_ORDERS),
            ("interpolation", INTERPOLATIONS),
            ("resolution_interpolation", INTERPOLATIONS),
        ):
            if getattr(self, field) not in choices:
                raise ConfigError(
                    f"supernet.preprocessing.{field} must be one of {list(choices)}, got {getattr(self, field)!r}"
                )
