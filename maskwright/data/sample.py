"""A sample on its way to the input frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from maskwright.formats.dataset import Sample
from maskwright.structures import Instances


@dataclass(frozen=True, eq=False)
class InputSample(Sample):
    """A sample of a data set, still in the original frame, with what a batch needs beside it.

    Args:
        input_size: (h, w) it shall have in the input frame; None leaves it to the input's resize rule.
        proposals: for detectors that consume them.
    """

    input_size: tuple[int, int] | None = None
    proposals: Instances | None = None

    @classmethod
    def of(cls, sample: Sample, proposals: Instances | None = None) -> InputSample:
        """What a data set read."""
        return cls(sample.image, sample.instances, sample.id, sample.name, proposals=proposals)

    def moved(self, change: Callable[[Instances], Instances]) -> InputSample:
        """With objects and proposals changed alike."""
        proposals = None if self.proposals is None else change(self.proposals)
        return replace(self, instances=change(self.instances), proposals=proposals)
