"""Whether intervals hold what they promise."""

import numpy as np
import pytest
import torch

from maskwright.evaluation.matching import precision_at_recalls
from maskwright.evaluation.statistics import Comparisons, Sampled, image_weights

IMAGES, OBJECTS, ANSWERS, RESAMPLES, TRIALS = 50, 3, 4, 200, 2000


def draw_images(rng, skill, count):
    """Answers of a detector of some skill: whether each found an object, and its score, (images, answers)."""
    level = skill + rng.normal(0, 0.8, (count, 1))  # images differ: their answers are not independent
    found = rng.random((count, ANSWERS)) < 1 / (1 + np.exp(-level))
    found[np.cumsum(found, axis=1) > OBJECTS] = False
    return found, rng.normal(found * 1.2, 1.0)


def average_precision(found, scores, weights):
    """AP of answers, for each set of weights of images."""
    order = np.argsort(-scores, axis=None)
    each = torch.from_numpy(weights[:, order // ANSWERS])
    hits = torch.from_numpy(np.flatnonzero(found.reshape(-1)[order]))
    total = torch.from_numpy(OBJECTS * weights.sum(axis=1))
    return precision_at_recalls(hits, each, each.cumsum(dim=1), total)[0].mean(axis=1)


def true_ap(rng, skills):
    """On very many images, mean over trainings."""
    once = np.ones((1, 20000), dtype=np.float32)
    return np.mean([average_precision(*draw_images(rng, skill, 20000), once)[0] for skill in skills])


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.35)], ids=["one seed, these weights", "three seeds"])
def test_intervals_cover_the_truth_in_95_of_100_trials(seeds, spread, capsys):
    """AP of simulated detectors: a training has a skill of its own, an image a difficulty of its own."""
    rng = np.random.default_rng(0)
    truth = true_ap(rng, rng.normal(0.3, spread, 1 if spread == 0 else 60))
    weights = image_weights(IMAGES, resamples=RESAMPLES)
    once = np.ones((1, IMAGES), dtype=np.float32)
    covered, widths = 0, []
    for trial in range(TRIALS):
        drawn = [draw_images(rng, skill, IMAGES) for skill in rng.normal(0.3, spread, seeds)]
        values = np.array([average_precision(*answers, once)[0] for answers in drawn])
        resampled = np.stack([average_precision(*answers, weights) for answers in drawn])
        interval = Comparisons({"it": Sampled(values, resampled)}, seed=trial).interval("it")
        covered += interval.low <= truth <= interval.high
        widths.append(interval.high - interval.low)
    with capsys.disabled():
        print(f"\n95 % intervals of AP, {seeds} seeds: cover {100 * covered / TRIALS:.1f} % of {TRIALS} trials, ", end="")
        print(f"mean width {100 * np.mean(widths):.1f} points")
    assert covered / TRIALS >= 0.92
    assert covered / TRIALS <= 0.99  # not by being wide
