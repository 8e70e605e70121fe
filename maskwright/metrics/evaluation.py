"""One set of detections by every protocol that applies to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from maskwright.formats.dataset import Dataset
from maskwright.metrics.cityscapes import CityscapesMetrics, evaluate_cityscapes, is_cityscapes
from maskwright.metrics.detection import DetectionMetrics, evaluate_detections
from maskwright.metrics.overlaps import Kind
from maskwright.metrics.proposals import ProposalMetrics, evaluate_proposals
from maskwright.metrics.region_ap import RegionMetrics, evaluate_regions


@dataclass(frozen=True)
class Evaluation:
    """Metrics by kind, "bbox", "segm", "boundary" and "keypoints", and the detections they were computed from.

    Where classes are ignored there is also the recall of the answers as proposals; where they are not, VOC's mAP^r of masks,
    and on Cityscapes the AP of its benchmark.
    """

    metrics: dict[Kind, DetectionMetrics]
    results: list[dict[str, Any]]
    proposals: dict[Kind, ProposalMetrics] = field(default_factory=dict)
    regions: RegionMetrics | None = None
    cityscapes: CityscapesMetrics | None = None


def evaluate(
    dataset: Dataset,
    results: list[dict[str, Any]],
    *,
    kinds: Sequence[Kind],
    max_detections: Sequence[int],
    class_agnostic: bool,
    metrics: dict[Kind, DetectionMetrics] | None = None,
) -> Evaluation:
    """Score detections by COCO's protocol and those of proposals, VOC and Cityscapes, each where it applies.

    Args:
        results: entries of a COCO results file, original category ids.
        kinds: what overlap is measured on.
        max_detections: limits on the detections of an image.
        metrics: COCO's, where they are known already.

    Raises:
        ValueError: results without the boxes or masks asked for.
    """
    how: dict[str, Any] = {"max_detections": max_detections}
    proposals: dict[Kind, ProposalMetrics] = {}
    if class_agnostic:
        proposals = evaluate_proposals(dataset, results, kinds=[kind for kind in kinds if kind != "boundary"], **how)
    has_regions = "segm" in kinds and not class_agnostic
    return Evaluation(
        metrics or evaluate_detections(dataset, results, kinds=kinds, **how, class_agnostic=class_agnostic),
        results,
        proposals,
        evaluate_regions(dataset, results) if has_regions else None,
        evaluate_cityscapes(dataset, results) if has_regions and is_cityscapes(dataset) else None,
    )
