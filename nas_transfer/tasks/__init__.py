"""Tasks: a network around the body of a supernet, with its losses, metrics and costs.

`task` defines what every task is, and `training` how Lightning trains and scores one. Each of `classification`,
`detection`, `instance_segmentation`, `pose` and `segmentation` holds one task. `metrics` collects predictions over
batches and ranks, `coco_metrics` evaluates them. `checkpoint` reads and writes weights, `recipe` holds optimiser,
schedule and arch sampling.
"""

from nas_transfer.tasks.deployed import Deployed, DeployedNetwork
from nas_transfer.tasks.prediction import CocoResult, Prediction
from nas_transfer.tasks.recipe import ArchSampling, Recipe
from nas_transfer.tasks.task import Task, TaskSettings, Teacher

__all__ = [
    "ArchSampling",
    "CocoResult",
    "Deployed",
    "DeployedNetwork",
    "Prediction",
    "Recipe",
    "Task",
    "TaskSettings",
    "Teacher",
]
