"""Whether intervals hold what they promise."""

import numpy as np
import pytest
import torch

from maskwright.metrics.matching import precision_at_recalls
from maskwright.metrics.statistics import Comparisons, Sampled, holm, image_weights, p_value

IMAGES, OBJECTS, ANSWERS, RESAMPLES, TRIALS, SKILL = 50, 3, 4, 200, 2000, 0.3


def draw_images(rng, skill, levels):
    """Answers of a detector of some skill: whether each found an object, and its score, (images, answers).

    Images differ by their level: answers of one image are not independent.
    """
    found = rng.random((len(levels), ANSWERS)) < 1 / (1 + np.exp(-skill - levels))
    found[np.cumsum(found, axis=1) > OBJECTS] = False
    return found, rng.normal(found * 1.2, 1.0)


def average_precision(found, scores, weights):
    """AP of answers, for each set of weights of images."""
    order = np.argsort(-scores, axis=None)
    each = torch.from_numpy(weights[:, order // ANSWERS])
    hits = torch.from_numpy(np.flatnonzero(found.reshape(-1)[order]))
    total = torch.from_numpy(OBJECTS * weights.sum(axis=1))
    return precision_at_recalls(hits, each, each.cumsum(dim=1), total)[0].mean(axis=1)


def simulated(rng, skill, spread, seeds, weights, levels=None):
    """AP of a detector trained several times, on images that are the same for all trainings."""
    levels = rng.normal(0, 0.8, (IMAGES, 1)) if levels is None else levels
    once = np.ones((1, IMAGES), dtype=np.float32)
    drawn = [draw_images(rng, own, levels) for own in rng.normal(skill, spread, seeds)]
    values = np.array([average_precision(*answers, once)[0] for answers in drawn])
    return Sampled(values, np.stack([average_precision(*answers, weights) for answers in drawn]))


def true_ap(rng, skills):
    """On very many images, mean over trainings."""
    once = np.ones((1, 20000), dtype=np.float32)
    return np.mean([average_precision(*draw_images(rng, skill, rng.normal(0, 0.8, (20000, 1))), once)[0] for skill in skills])


@pytest.mark.parametrize(
    ("seeds", "spread"),
    [pytest.param(1, 0.0, id="one seed, these weights"), pytest.param(3, 0.35, id="three seeds", marks=pytest.mark.slow)],
)
def test_intervals_cover_the_truth_in_95_of_100_trials(seeds, spread, capsys):
    """AP of simulated detectors: a training has a skill of its own, an image a difficulty of its own."""
    rng = np.random.default_rng(0)
    truth = true_ap(rng, rng.normal(SKILL, spread, 60) if spread else [SKILL])
    weights = image_weights(IMAGES, resamples=RESAMPLES)
    covered, widths = 0, []
    for trial in range(TRIALS):
        interval = Comparisons({"it": simulated(rng, SKILL, spread, seeds, weights)}, images=IMAGES, seed=trial).interval("it")
        covered += interval.low <= truth <= interval.high
        widths.append(interval.high - interval.low)
    with capsys.disabled():
        print(f"\n95 % intervals of AP, {seeds} seeds: cover {100 * covered / TRIALS:.1f} % of {TRIALS} trials, ", end="")
        print(f"mean width {100 * np.mean(widths):.1f} points")
    assert covered / TRIALS >= 0.92
    assert covered / TRIALS <= 0.99  # not by being wide


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.35)])
def test_equal_systems_are_rarely_called_different(seeds, spread, capsys):
    """Three detectors of one skill on the same images: some pair is called different in one trial of twenty at most."""
    rng = np.random.default_rng(1)
    weights = image_weights(IMAGES, resamples=RESAMPLES)
    false = 0
    for trial in range(TRIALS // 4):
        levels = rng.normal(0, 0.8, (IMAGES, 1))
        entries = {name: simulated(rng, SKILL, spread, seeds, weights, levels) for name in "abc"}
        false += any(difference.is_real for difference in Comparisons(entries, images=IMAGES, seed=trial).differences())
    with capsys.disabled():
        print(f"\nthree equal detectors, {seeds} seeds: a false difference in {100 * false / (TRIALS // 4):.1f} % of trials")
    assert false / (TRIALS // 4) <= 0.08


def test_clear_differences_are_called_real():
    rng = np.random.default_rng(2)
    weights = image_weights(IMAGES, resamples=RESAMPLES)
    entries = {name: simulated(rng, skill, 0.0, 1, weights) for name, skill in (("poor", -1.5), ("good", 2.0), ("fair", 0.0))}
    found = Comparisons(entries, images=IMAGES).differences()
    assert all(d.interval.value > 0 for d in found)
    assert found[0].is_real
    assert (found[0].first, found[0].second) == ("good", "poor")
    assert found[0].interval.low > 0


def test_spread_between_seeds_widens_intervals():
    """Two seeds 0.2 apart tell little: the t-distribution with one degree of freedom is wide."""
    flat = np.repeat([[0.4], [0.6]], 1000, axis=1)
    alone = Comparisons({"a": Sampled(np.array([0.4, 0.6]), flat)}, images=9)
    assert alone.spread == pytest.approx(0.2 / np.sqrt(2))
    interval = alone.interval("a")
    assert interval.value == pytest.approx(0.5)
    assert (interval.low, interval.high) == (0, 1)  # 12.7 standard errors of 0.1 on either side, cut
    others = {name: Sampled(np.array([0.4, 0.6]), flat) for name in "abcdef"}
    assert Comparisons(others, images=9).interval("a").high < interval.high
    one = Comparisons({"a": Sampled(np.array([0.4]), np.full((1, 1000), 0.4))}, images=9).interval("a")
    assert one.low == one.high == pytest.approx(0.4)


def test_nothing_to_find_has_no_interval():
    absent = Sampled(np.array([np.nan]), np.full((1, 10), np.nan))
    nothing = Comparisons({"a": absent, "b": Sampled(np.array([0.5]), np.full((1, 10), 0.5))}, images=9)
    assert np.isnan(nothing.interval("a").low)
    assert nothing.differences() == []
    assert nothing.interval("b").value == 0.5


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_value_by_hand():
    draws = np.arange(-10, 90) / 100 + 0.005
    assert p_value(float(draws.mean()), draws) == pytest.approx(2 * 11 / 101)
    assert p_value(0.0, np.zeros(99)) == 1.0
    far = np.random.default_rng(0).normal(5, 1, 400)
    assert p_value(5.0, far) == pytest.approx(5.7e-7, rel=0.5)  # five standard deviations, which 400 draws cannot count


@pytest.mark.parametrize(("images", "is_real"), [(1, False), (3, False), (5, False), (6, True), (50, True)])
def test_few_images_cannot_be_sure(images, is_real):
    """All images agree, so that no resample doubts it: a sign test of five images still says p = 1/16."""
    entries = {name: Sampled(np.array([ap]), np.full((1, 100), ap)) for name, ap in (("a", 0.6), ("b", 0.3))}
    assert Comparisons(entries, images=images).differences()[0].is_real == is_real


def test_many_entries_can_still_be_told_apart():
    rng = np.random.default_rng(0)
    entries = {str(k): Sampled(np.array([k / 10]), rng.normal(k / 10, 0.005, (1, 400))) for k in range(9)}
    assert all(difference.is_real for difference in Comparisons(entries, images=1000).differences())
