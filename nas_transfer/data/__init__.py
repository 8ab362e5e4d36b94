"""Datasets on disk and the batches made of them: one file per layout.

`module` has what all layouts share. `image_folder`, `coco_instances`, `coco_keypoints` and `label_maps` each read one
layout; `sources`, `augmentation` and `split` hold the records of their configuration, and `samples` the types of what
they give. `inspection` validates a dataset for `stage=check`, `drawing` draws samples for people, and `synthetic`
draws the embedded datasets.
"""
