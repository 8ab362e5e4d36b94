"""The examples of a model card. They need onnxruntime, NumPy and Pillow alone."""

from __future__ import annotations

from nas_transfer.tasks.deployed import Deployed

BEGIN = """\
import json

import numpy as np, onnxruntime
from PIL import Image, ImageDraw

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
about = {{key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items() if key != "task"}}
names = about["names"]
image = Image.open("image.jpg").convert("RGB"){resize}
pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None]  # 0-255; the network normalises by itself
{padding}outputs = session.run(None, {{"images": pixels}})
draw = ImageDraw.Draw(image)
"""

PADDING = """\
multiple, grey = about["input"]["multiple_of"], about["input"]["padding"]
missing = [(0, -side % multiple) for side in pixels.shape[2:]]
pixels = np.pad(pixels, [(0, 0), (0, 0), *missing], constant_values=grey)
"""

BOXES = """\
boxes, labels, scores = outputs[:3]
for index in scores.argsort()[::-1][:10]:  # the ten best
    text = f"{names[labels[index] - about['first_label']]} {scores[index]:.2f}"
    left, top, right, bottom = boxes[index].tolist()
    draw.rectangle((left, top, right, bottom), outline="red", width=2)
    draw.text((left + 3, top + 2), text, fill="red")
    print(text)
image.save("drawn.png")
"""

CLASSES = """\
odds = np.exp(outputs[0][0] - outputs[0][0].max())
for rank, index in enumerate(odds.argsort()[::-1][:5]):  # the five most likely
    text = f"{names[index]} {odds[index] / odds.sum():.2f}"
    draw.text((4, 4 + 12 * rank), text, fill="red")
    print(text)
image.save("drawn.png")
"""

KEYPOINTS = """\
for name, point, score in zip(names, points, scores):
    x, y = point.tolist()
    draw.ellipse((x - 2, y - 2, x + 2, y + 2), outline="red")
    draw.text((x + 3, y - 5), name, fill="red")
    print(f"{name} {score:.2f}")
image.save("drawn.png")
"""

HEATMAPS = """\
maps = outputs[0][0]  # the image is the crop around one person
cells = maps.reshape(len(maps), -1).argmax(1)
points = np.stack([cells % maps.shape[2], cells // maps.shape[2]], 1) + 0.5
points, scores = points * image.width / maps.shape[2] - 0.5, maps.max((1, 2))
"""

SIMCC = """\
lines = outputs[0][0]  # the image is the crop around one person
columns = lines.shape[1] * image.width // (image.width + image.height)
across, down = (np.exp(part - part.max(1, keepdims=True)) for part in np.split(lines, [columns], 1))
points = np.stack([across.argmax(1), down.argmax(1)], 1) * image.width / columns
scores = 1 / np.maximum(across.sum(1), down.sum(1))
"""

PIXELS = """\
labels = outputs[0][0].argmax(0)[: image.height, : image.width]
colours = np.random.default_rng(0).integers(64, 255, (len(names), 3), dtype=np.uint8)
drawn = Image.blend(image, Image.fromarray(colours[labels]), 0.6)
draw = ImageDraw.Draw(drawn)
for index in np.unique(labels).tolist():
    rows, columns = np.nonzero(labels == index)
    draw.text((columns[len(columns) // 2], rows[len(rows) // 2]), names[index], fill="black")
    print(f"{names[index]} {100 * len(rows) / labels.size:.0f} %")
drawn.save("drawn.png")
"""

OTHER = """\
for output, values in zip(session.get_outputs(), outputs):
    print(output.name, values.shape)
"""

TORCH_EXAMPLE = """\
import torch

body = torch.export.unflatten(torch.export.load("body.pt2"))  # a torch.nn.Module; its weights can be trained further
maps = body(torch.zeros(1, 3, 64, 96))  # RGB, 0-255, H and W in multiples of 32
for stride, features in zip((4, 8, 16, 32), maps):
    print(stride, tuple(features.shape))
"""


def onnx_example(deployed: Deployed, size: tuple[int, int]) -> str:
    """Code that runs ``model.onnx`` on an image, prints names and draws them.

    Args:
        deployed: the whole network.
        size: (H, W) of the images of a network that does not take any size.
    """
    is_map = deployed.outputs == ("logits",) and deployed.padding is not None
    resize = "" if deployed.one_image or is_map else f".resize(({size[1]}, {size[0]}))"
    begin = BEGIN.format(resize=resize, padding=PADDING if is_map else "")
    if is_map:
        return begin + PIXELS
    return begin + BY_OUTPUT.get(deployed.outputs[0], OTHER)


BY_OUTPUT = {"boxes": BOXES, "logits": CLASSES, "heatmaps": HEATMAPS + KEYPOINTS, "simcc": SIMCC + KEYPOINTS}
"""What follows the pass, by the first output of the network."""
