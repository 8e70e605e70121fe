"""Proposals for a detector to learn from: of files, or of the run of a proposal system, which it then brings along."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor, nn

from maskwright.data.loader import evaluation_batches
from maskwright.data.proposals import Proposals, read_proposals
from maskwright.formats import Dataset
from maskwright.formats.dataset import Categories
from maskwright.formats.files import write_json
from maskwright.metrics import detect
from maskwright.recipes import Recipe
from maskwright.runs import ModelCard, Precision, open_model
from maskwright.runs.checkpoints import find_weights
from maskwright.runs.progress import shown
from maskwright.systems import System, Task
from maskwright.systems.proposals.fast_rcnn import FastRCNN
from maskwright.training.distributed import Processes

PROPOSAL = Categories(("object",), (1,))
"""The one class of systems that do not tell classes apart."""
FOLDER = "proposals"
"""Of a proposal system's run, where its proposals for data sets are kept."""


@dataclass(frozen=True, eq=False)
class GivenProposals:
    """Proposals of both splits.

    Args:
        card: of the system that made them, if it is one of ours.
        weights: of it, by its own names.
    """

    train: Proposals
    val: Proposals
    card: ModelCard | None
    weights: dict[str, Tensor]


def proposals_of(
    recipe: Recipe,
    system: System,
    train: Dataset,
    val: Dataset,
    *,
    precision: Precision,
    processes: Processes,
    console: Console,
) -> GivenProposals | None:
    """The proposals a recipe names, None where its system makes its own.

    Raises:
        ValueError: none are named, or they are not what the system needs.
    """
    check_proposals(recipe, system)
    if not isinstance(system, FastRCNN) or recipe.proposals is None:
        return None
    source, most = Path(recipe.proposals), system.num_proposals
    files = [source / f"{split}.json" for split in ("train", "val")]
    if all(file.is_file() for file in files):
        both = [read_proposals(file, dataset, most=most) for file, dataset in zip(files, (train, val), strict=True)]
        given = GivenProposals(both[0], both[1], None, {})
    else:
        given = _made(recipe, source, train, val, most=most, precision=precision, processes=processes, console=console)
    if system.task == Task.INSTANCES and not (given.train.has_masks and given.val.has_masks):
        raise ValueError(f"{source}: holds boxes without masks: set arguments.has_masks=false for a detector of boxes")
    return given


def check_proposals(recipe: Recipe, system: System) -> None:
    """Make sure that a recipe names proposals where its system needs them, and only there.

    Raises:
        ValueError: it does not.
    """
    if recipe.proposals is not None and not isinstance(system, FastRCNN):
        raise ValueError(f"{recipe.system} makes its own proposals: leave 'proposals' away")
    if recipe.proposals is None and isinstance(system, FastRCNN):
        raise ValueError(
            f"{recipe.system} needs proposals: add --set proposals=RUN, the run of a system such as sharpmask-small"
        )


def _made(
    recipe: Recipe,
    source: Path,
    train: Dataset,
    val: Dataset,
    *,
    most: int,
    precision: Precision,
    processes: Processes,
    console: Console,
) -> GivenProposals:
    """Proposals of a run, with the system that makes them."""
    if not source.exists():
        raise ValueError(f"{source}: there is no such run, nor a folder with train.json and val.json: see 'proposals'")
    system, card = open_model(source)
    if system.task != Task.PROPOSALS:
        raise ValueError(f"{source}: is a run of {card.system}, which answers {system.task}: name one of a proposal system")
    if card.input.intensity != recipe.intensity:
        raise ValueError(
            f"{source}: reads images of more than 8 bits as {card.input.intensity}, the detector as {recipe.intensity}: "
            "set the recipe's intensity like that of the proposals"
        )
    system.max_detections = most
    cast(nn.Module, system).to(precision.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    both = [_kept(source, system, dataset, most, precision, processes, console) for dataset in (train, val)]
    weights = {name: tensor.cpu() for name, tensor in system.state_dict().items()}
    return GivenProposals(both[0], both[1], card, weights)


def _kept(
    source: Path,
    system: System,
    dataset: Dataset,
    most: int,
    precision: Precision,
    processes: Processes,
    console: Console,
) -> Proposals:
    """Proposals for a data set, made once and kept in the folder of the run they come from."""
    weights, annotations = find_weights(source), dataset.path
    stamps = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in (weights, annotations)]
    key = json.dumps([stamps, dataset.image_ids.tolist(), most])
    folder = source if source.is_dir() else source.parent
    file = folder / FOLDER / f"{annotations.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    if not processes.tell(file.is_file()):
        console.print(f"proposals for {annotations}, kept in {file}", highlight=False, soft_wrap=True)
        mine = dataset.subset(range(processes.rank, len(dataset), processes.count))
        categories = replace(PROPOSAL, ids=dataset.categories.ids[:1])
        batches = evaluation_batches(mine, spec=system.input, batch_size=1)
        with torch.inference_mode(), precision.autocast(), shown(console, "propose", total=len(mine)) as bar:
            results = detect(system.predict, batches, categories, device=precision.device, done=bar.advance)
        if parts := processes.gather(results):
            write_json(file, [entry for part in parts for entry in part])
        processes.tell(None)
    return read_proposals(file, dataset, most=most)
