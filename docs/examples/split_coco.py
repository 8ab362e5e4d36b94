"""Split a COCO annotation file.

python split_coco.py mine/all.json      writes mine/annotations/instances_train.json and instances_val.json
"""

import json
import random
import sys
from pathlib import Path

SHARE = 0.15  # of the images that become val
source = Path(sys.argv[1])
content = json.loads(source.read_text())
images = sorted(content["images"], key=lambda image: image["file_name"])
random.Random(0).shuffle(images)
count = max(1, round(SHARE * len(images)))
(source.parent / "annotations").mkdir(exist_ok=True)
for part, chosen in {"val": images[:count], "train": images[count:]}.items():
    ids = {image["id"] for image in chosen}
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    written = {"images": chosen, "annotations": annotations, "categories": content["categories"]}
    (source.parent / f"annotations/instances_{part}.json").write_text(json.dumps(written))
