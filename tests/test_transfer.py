"""The experiment on few labels: every start gets the same, and the results file is what the chapter
says.
"""

import pytest
import torch

from densenet_tutorial import data
from densenet_tutorial.experiments import transfer


def test_few_labels_are_balanced_drawn_by_the_seed_and_tested_on_the_same():
    one, again, other = (transfer.few_labels(3, seed, tests=20) for seed in (0, 0, 1))
    assert one.train_images.shape == (30, 1, 28, 28) and one.test_images.shape == (20, 1, 28, 28)
    assert one.train_labels.bincount().tolist() == [3] * 10
    assert torch.equal(one.train_images, again.train_images)
    assert not torch.equal(one.train_images, other.train_images)
    assert torch.equal(one.test_images, other.test_images)
    everything = data.load_dataset("digits")
    assert torch.equal(one.test_labels, everything.test_labels[:20])


def test_the_starts_differ_in_what_they_begin_with_and_in_what_learns():
    scratch, frozen, tuned = (transfer.started(start, 0) for start in transfer.STARTS)
    shapes = [[p.shape for p in model.parameters()] for model in (scratch, frozen, tuned)]
    assert shapes[0] == shapes[1] == shapes[2]
    assert torch.equal(frozen.features.conv0.weight, tuned.features.conv0.weight)
    assert torch.equal(frozen.classifier.weight, tuned.classifier.weight)
    assert not torch.equal(scratch.features.conv0.weight, tuned.features.conv0.weight)
    learning = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (frozen, tuned)]
    assert learning[0] == sum(p.numel() for p in frozen.classifier.parameters()) < learning[1]


def test_run_reports_each_epoch(monkeypatch):
    few = transfer.few_labels
    monkeypatch.setattr(transfer, "few_labels", lambda n, seed: few(n, seed, tests=10))
    accuracies = transfer.run_from("frozen", 0, per_class=1, epochs=2)
    assert len(accuracies) == 2 and all(0 <= accuracy <= 1 for accuracy in accuracies)
    with pytest.raises(ValueError, match="start must be one of"):
        transfer.run_from("tuned", 0)


def test_the_results_file_is_complete_and_says_what_the_chapter_says():
    results = transfer.results()
    assert sorted({key[:2] for key in results}) == [(5, 0.05), (5, 0.1), (15, 0.05), (15, 0.1)]
    for epochs, lr in {key[:2] for key in results}:
        by_start = [results[epochs, lr, start] for start in transfer.STARTS]
        assert [len(accuracies) for accuracies in by_start] == [3, 3, 3]
    for epochs in (5, 15):  # each at the better of its two learning rates
        best = {
            start: max((results[epochs, lr, start] for lr in (0.05, 0.1)), key=sum)
            for start in transfer.STARTS
        }
        assert min(best["fine-tuned"]) > max(best["from scratch"])
        assert min(best["from scratch"]) > max(best["frozen"])
