"""A task: ordered grades, such as ripeness or quality, from one folder of images for each grade (0, 1, 2, ...)."""

import torch.nn.functional as F
from torch import nn
from torchmetrics import MeanMetric

from nas_transfer.arch import SUPERNET
from nas_transfer.data.drawing import draw_texts
from nas_transfer.runs import TaskKind
from nas_transfer.supernet.cost import Cost, linear_cost
from nas_transfer.supernet.layers import Layers
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.deployed import Deployed, DeployedNetwork
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.task import Task


class Grader(nn.Module):
    def __init__(self, body, channels, highest, layers):
        super().__init__()
        self.body = body  # gives maps at strides 4, 8, 16, 32
        self.grade = layers.linear(channels, 1)  # a supernet's follows the width of its input
        self.highest = highest

    def forward(self, images):  # normalised (B, 3, H, W) to a grade between 0 and the highest (B,)
        pooled = self.body(images)[-1].mean((2, 3))
        return self.highest * self.grade(pooled).squeeze(1).sigmoid()


class GradesTask(Task):
    kind = TaskKind("grades", "Grades", "closeness", classes_are="grades")  # 1 - mean distance / largest distance

    def __init__(self, settings, *, image_size):
        table, arch = settings.table, settings.arch  # one arch, or SUPERNET
        channels = table.feature_channels(table.space.arch_or_largest(arch))[-1]
        layers = Layers(elastic=arch is SUPERNET, eps=table.batch_norm_eps)
        super().__init__(settings, Grader(build_body(table, arch), channels, settings.num_classes - 1, layers))
        self.image_size = image_size
        self.distance = MeanMetric()

    def rebuild(self, settings):
        return GradesTask(settings, image_size=self.image_size)

    def forward_batch(self, batch):
        return self.network(self.normalise(batch["images"]))

    def losses(self, batch, *, regularise, teacher):  # teacher: of the largest arch of this step
        grades = self.forward_batch(batch)
        losses = {"grades": F.mse_loss(grades, batch["labels"].to(grades.dtype))}
        if teacher is not None:
            imitation = F.mse_loss(grades, teacher.outputs)
            losses = {"grades": (1 - teacher.share) * losses["grades"], "distillation": teacher.share * imitation}
        return losses, grades.detach()

    def update_metrics(self, batch):
        self.distance.update((self.forward_batch(batch) - batch["labels"]).abs())

    def compute_metrics(self):
        distance = self.distance.compute().item()  # over all ranks
        self.distance.reset()
        return {"closeness": 1 - distance / (self.settings.num_classes - 1)}

    def predict_image(self, batch, image_id, vocabulary):
        grade = self.forward_batch(batch).item()
        row = {"image_id": image_id, "grade": grade, "nearest": vocabulary.names[round(grade)]}
        text = f"{row['nearest']} ({grade:.2f})"
        return Prediction({"predictions.csv": [row]}, lambda image, _, side: draw_texts(image, [text], side))

    def deployed(self):
        return Deployed(DeployedNetwork(self.normalise, self.network), ("grade",), self.input_size(self.arch))

    def input_size(self, arch):
        return self.image_size, self.image_size

    def head_costs(self, arch):
        return {"head": Cost((linear_cost("grade", self.table.feature_channels(arch)[-1], 1),))}
