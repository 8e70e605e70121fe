"""How sure a number is: bootstrap over images, and the spread between seeds.

Images are drawn again with replacement, the same draws for everything that is compared, so that a difference is tested on the
same images on both sides. What another training run would have given is known from few seeds only: their spread, pooled over
all entries, enters as a t-distributed error (a parametric bootstrap of a mean with unknown variance), which keeps intervals
honest at two or three seeds. With one seed an interval speaks of these very weights.

Legend: B resamples · S seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from maskwright.metrics.overlaps import Floats

LEVEL = 0.95
RESAMPLES = 1000


def image_weights(num_images: int, *, resamples: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.float32]:
    """How often each image is drawn in each resample, (B, images)."""
    draws = np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)
    return draws.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Sampled:
    """One metric of one entry.

    Args:
        values: of each seed on all images, (S,).
        resampled: on the images of each resample, (S, B).
    """

    values: Floats
    resampled: Floats


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval; nan where there is nothing to find."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better the first is than the second.

    Args:
        first, second: names.
        interval: of the difference.
        p_value: two-sided, corrected for the number of pairs looked at (Holm).
        is_real: whether the difference holds at the 5 % level.
    """

    first: str
    second: str
    interval: Interval
    p_value: float
    is_real: bool


class Comparisons:
    """One metric of several entries: intervals, and what can be told apart.

    Args:
        entries: by name.
        images: with objects: so few cannot make a difference surer than as many throws of a coin.
        seed: of the draws that stand for other training runs.
    """

    def __init__(self, entries: Mapping[str, Sampled], *, images: int, seed: int = 0) -> None:
        self.entries = entries
        self.images = images
        there = [e.values for e in entries.values() if not np.isnan(e.values).any()]
        squares = [float(((values - values.mean()) ** 2).sum()) for values in there]
        freedom = sum(len(values) - 1 for values in there)
        self.spread = float(np.sqrt(sum(squares) / freedom)) if freedom else 0.0  # between seeds
        rng = np.random.default_rng(seed)
        count = max((e.resampled.shape[1] for e in entries.values()), default=0)
        scale = self.spread / np.sqrt(rng.chisquare(freedom, count) / freedom) if freedom else np.zeros(count)
        self._draws: dict[str, Floats] = {}
        for name, entry in entries.items():
            seeds = len(entry.values)
            noise = rng.standard_normal(count) * scale / np.sqrt(seeds) if seeds > 1 else 0.0
            self._draws[name] = entry.resampled.mean(axis=0) + noise

    def interval(self, name: str) -> Interval:
        """Where the mean over seeds would lie on other images and with other seeds."""
        found = _interval(float(self.entries[name].values.mean()), self._draws[name])
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))  # nan stays nan

    def differences(self) -> list[Difference]:
        """All pairs, the better one first, the larger differences first."""
        means = {name: float(entry.values.mean()) for name, entry in self.entries.items()}
        ranked = sorted((name for name in means if not np.isnan(means[name])), key=lambda name: -means[name])
        pairs = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :]]
        draws = [self._draws[a] - self._draws[b] for a, b in pairs]
        least = 2.0 ** (1 - self.images)  # of a sign test
        corrected = holm([max(least, p_value(means[a] - means[b], d)) for (a, b), d in zip(pairs, draws, strict=True)])
        found = [
            Difference(a, b, _interval(means[a] - means[b], draw), p, p < 1 - LEVEL)
            for (a, b), draw, p in zip(pairs, draws, corrected, strict=True)
        ]
        return sorted(found, key=lambda difference: -difference.interval.value)


def _interval(value: float, draws: Floats) -> Interval:
    if np.isnan(value) or np.isnan(draws).all():
        return Interval(float("nan"), float("nan"), float("nan"))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(_centered(value, draws), [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _centered(value: float, draws: Floats) -> Floats:
    """Draws around the value itself: AP is a little higher on images that are drawn twice."""
    there: Floats = draws[~np.isnan(draws)]
    return there + (value - float(there.mean()))


def p_value(value: float, draws: Floats) -> float:
    """How often a bootstrapped difference falls on the other side of zero, two-sided.

    Where no draw does, the tail of the normal distribution with their spread is taken: B draws alone could not tell any
    difference from chance among many.
    """
    draws = _centered(value, draws)
    less = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    counted = min(1.0, 2 * (less + 1) / (len(draws) + 1))
    spread = float(draws.std())
    return counted if less or not spread else min(counted, math.erfc(abs(value) / spread / math.sqrt(2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of a single false claim stays at the level (Holm, 1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    highest = 0.0
    for step, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[place]))
        corrected[place] = highest
    return corrected.tolist()
