"""What the kept model is worth: its losses and its scores on the validation set, each process doing its share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from maskwright.data.loader import Share, evaluation_batches
from maskwright.metrics import DetectionMetrics, default_limits, detect, evaluate_detections
from maskwright.metrics.overlaps import Kind
from maskwright.recipes import Stage
from maskwright.runs.device import return_freed_memory
from maskwright.runs.progress import shown
from maskwright.systems import Task
from maskwright.training.proposals import PROPOSAL
from maskwright.training.run import Run
from maskwright.training.sources import validation_batches

KINDS: dict[Task, list[Kind]] = {
    Task.INSTANCES: ["bbox", "segm"],
    Task.BOXES: ["bbox"],
    Task.PROPOSALS: ["bbox", "segm"],
    Task.KEYPOINTS: ["bbox", "keypoints"],
    Task.MASKS_AND_KEYPOINTS: ["bbox", "segm", "keypoints"],
}
"""What a task is scored on; the last decides which model is best."""


def validate(run: Run, stage: Stage) -> tuple[dict[str, float], list[DetectionMetrics]]:
    """Loss terms and metrics of the kept model on the validation set, the metric that decides last."""
    system, processes = run.scored, run.processes
    system.eval()
    with torch.inference_mode(), run.precision.autocast():
        totals = _losses(run, stage)
        results = _detections(run) if stage.is_scored else []
    system.train()
    answer = None
    if gathered := processes.gather((results, totals)):
        names = {name for _, part in gathered for name in part}
        losses = {name: _mean_of_parts([part[name] for _, part in gathered if name in part]) for name in sorted(names)}
        everything = [entry for part, _ in gathered for entry in part]
        answer = losses, _scores(run, everything) if stage.is_scored else []
    losses, scores = processes.tell(answer)
    return_freed_memory()  # validation images have sizes of their own
    return losses, scores


def _losses(run: Run, stage: Stage) -> dict[str, list[float]]:
    """This process' total and count of each term over the validation batches."""
    totals: dict[str, list[float]] = {}
    device, share = run.precision.device, Share(1, run.processes.rank, run.processes.count)
    proposals = None if run.given is None else run.given.val
    for batch in validation_batches(stage, run.scored, run.val, share, proposals):
        losses = run.scored.loss(batch.images.to(device), [t.to(device) for t in batch.targets])
        for name, loss in losses.items():
            total, count = totals.setdefault(name, [0.0, 0.0])
            totals[name] = [total + batch.weight * float(loss.total), count + batch.weight * float(loss.count)]
    return totals


def _detections(run: Run) -> list[dict[str, Any]]:
    """Detections in this process' share of the validation images."""
    mine = run.val.subset(range(run.processes.rank, len(run.val), run.processes.count))
    proposals = None if run.given is None else run.given.val
    batches = evaluation_batches(mine, spec=run.scored.input, batch_size=4, proposals=proposals)
    categories = run.val.categories
    if run.scored.task == Task.PROPOSALS:
        categories = replace(PROPOSAL, ids=categories.ids[:1])  # classes are ignored
    with shown(run.console, "validate", total=len(mine)) as bar:
        return detect(run.scored.predict, batches, categories, device=run.precision.device, done=bar.advance)


def _scores(run: Run, results: list[dict[str, Any]]) -> list[DetectionMetrics]:
    task, most = run.system.task, run.system.max_detections
    is_agnostic = task == Task.PROPOSALS
    limits = default_limits(most, of_proposals=is_agnostic)
    metrics = evaluate_detections(run.val, results, kinds=KINDS[task], max_detections=limits, class_agnostic=is_agnostic)
    return list(metrics.values())


def _mean_of_parts(parts: Sequence[Sequence[float]]) -> float:
    """A loss term from the totals and counts of several processes."""
    total, count = (sum(part[i] for part in parts) for i in range(2))
    return total / (count or 1.0)
