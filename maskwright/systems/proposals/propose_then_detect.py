"""A proposal system and a detector on its proposals, as one system."""

from typing import cast

from torch import nn

from maskwright.structures import ImageBatch, Instances
from maskwright.systems.system import Loss, System


class ProposeThenDetect(nn.Module):
    """Fills `ImageBatch.proposals` from a system, where they are not there already, and hands the batch on.

    Images come as the proposer wants them, and are made anew for the detector.

    Args:
        proposer: answers proposals, best first.
        detector: consumes them.
    """

    def __init__(self, proposer: System, detector: System) -> None:
        super().__init__()
        self.proposer = cast(nn.Module, proposer)
        self.detector = cast(nn.Module, detector)
        self.input = proposer.input
        self.task = detector.task

    @property
    def max_detections(self) -> int:
        """Of the detector."""
        return self._detector.max_detections

    @max_detections.setter
    def max_detections(self, value: int) -> None:
        self._detector.max_detections = value

    @property
    def _detector(self) -> System:
        return cast(System, self.detector)

    def loss(self, images: ImageBatch, targets: list[Instances]) -> dict[str, Loss]:
        """The detector's; targets in the proposer's input frame."""
        batch = self._with_proposals(images)
        moved = [target.resize(size) for target, size in zip(targets, batch.sizes, strict=True)]
        return self._detector.loss(batch, moved)

    def predict(self, images: ImageBatch) -> list[Instances]:
        """Propose, then detect."""
        return self._detector.predict(self._with_proposals(images))

    def _with_proposals(self, images: ImageBatch) -> ImageBatch:
        proposals = cast(System, self.proposer).predict(images) if images.proposals is None else images.proposals
        batch = self._detector.input.convert(images, self.input)
        return batch.with_proposals(proposals)

    def class_rows(self) -> dict[str, int]:
        """Those of the detector."""
        return {f"detector.{name}": rows for name, rows in self._detector.class_rows().items()}
