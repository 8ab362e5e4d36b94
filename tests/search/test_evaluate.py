"""What an evaluator does to the weights of a trial before it is scored."""

import pytest
import torch
from torch import Tensor

from nas_transfer.runs import Evaluation
from nas_transfer.runs.costs import Usage
from nas_transfer.search.evaluate import TrialEvaluator, TrialImages
from nas_transfer.tasks.repair import SubnetRepairer
from nas_transfer.tasks.task import Task
from tests.tasks.test_repair import batches_for, classifier, trained


@pytest.fixture(scope="module")
def repairer() -> SubnetRepairer:
    task = trained(classifier)
    return SubnetRepairer(task, batches_for(task))


def logits(task: Task) -> Tensor:
    with torch.no_grad():
        return task.eval().forward_batch(batches_for(task)[0])  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 2])
def test_a_trained_part_of_one_network_keeps_the_statistics_with_which_it_was_trained(
    repairer: SubnetRepairer, after: int
) -> None:
    """Statistics of its own would undo the repair, which matches those of the whole network."""
    supernet = repairer.supernet
    arch = supernet.space.smallest()
    repaired = repairer.extract(arch)
    seen = []

    def repair(evaluation: Evaluation) -> Task:
        return repairer.extract(arch)

    def train(subnet: Task, evaluation: Evaluation) -> Usage:
        """As a training without BatchNorm statistics, which begins with a saved state behind the first rung."""
        if evaluation.after:
            subnet.load_state_dict(repaired.state_dict())
        with torch.no_grad():
            for parameter in subnet.network.parameters():
                parameter.mul_(1.01)
        seen.append(logits(subnet))
        return Usage(images=8)

    images = TrialImages(lambda repeat: batches_for(supernet), [])
    evaluation = Evaluation(0, arch.to_dict(), steps=4, after=after)
    evaluator = TrialEvaluator(supernet, images, {}, {}, 2**20, "32", train, repair)
    torch.testing.assert_close(logits(evaluator.extract(evaluation)), seen[0], rtol=1e-3, atol=1e-3)
    sliced = TrialEvaluator(supernet, images, {}, {}, 2**20, "32", train)  # a subnet of a supernet gets its own
    assert not torch.allclose(logits(sliced.extract(evaluation)), seen[1], rtol=1e-2, atol=1e-2)
