"""A run under way: what it carries from step to step, and what the files of its folder are called."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from rich.console import Console
from torch.optim.swa_utils import AveragedModel

from maskwright.formats import Dataset
from maskwright.recipes import Recipe
from maskwright.runs import ModelCard, Precision
from maskwright.systems import System
from maskwright.training.distributed import Processes
from maskwright.training.proposals import GivenProposals

STATE, RECIPE, SPLIT, METRICS = "training.safetensors", "recipe.yaml", "split.json", "metrics.jsonl"


@dataclass
class Run:
    """What a run carries from step to step."""

    recipe: Recipe
    out: Path
    card: ModelCard
    system: System
    train: Dataset
    val: Dataset
    precision: Precision
    console: Console
    processes: Processes
    average: AveragedModel | None
    given: GivenProposals | None
    stage: int = 0
    step: int = 0  # of the stage
    best: float | None = None  # AP of the best model, negative where there is nothing to find
    scores: list[float] = field(default_factory=list)  # of the stage's evaluations so far, where there was something to find
    time_s: float = 0.0  # spent on the steps so far, evaluation and saving included
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)  # loss terms since the last report, and their steps

    @property
    def scored(self) -> System:
        """The model that is evaluated and kept: the averaged one where there is one."""
        return self.system if self.average is None else cast(System, self.average.module)

    @property
    def is_stalled(self) -> bool:
        """Whether the stage has had as many evaluations since its best one as the recipe's patience allows."""
        if self.recipe.patience is None or not self.scores:
            return False
        return len(self.scores) - 1 - self.scores.index(max(self.scores)) >= self.recipe.patience
