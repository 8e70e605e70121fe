"""What a run is: typed, saved with it as recipe.yaml, changed from the command line field by field."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from maskwright.structures import Intensity, PatchKind
from maskwright.systems import current_name


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class OptimizerOptions(_Options):
    """SGD with momentum, or AdamW; biases and norms have weight decay of their own."""

    kind: Literal["sgd", "adamw"]
    lr: float = Field(gt=0)
    lr_images: int | None = Field(
        default=None,
        gt=0,
        description="images of a step that lr is for: other batches get their share of it; None: lr as it is",
    )
    weight_decay: float = Field(ge=0)
    bias_weight_decay: float = Field(ge=0)
    norm_weight_decay: float = Field(ge=0, description="of norms; their biases have the smaller of the two")
    bias_lr_factor: float = Field(default=1.0, gt=0, description="of the learning rate of biases")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="first beta of AdamW")
    clip_norm: float | None = Field(default=None, gt=0, description="gradients are scaled down to this norm")


class ScheduleOptions(_Options):
    """Warm-up, then steps or a cosine, over the steps of a stage."""

    kind: Literal["step", "cosine"]
    warmup_steps: int = Field(ge=0, description="at most a tenth of the stage")
    warmup_factor: float = Field(default=0.001, ge=0, le=1)
    warmup_kind: Literal["linear", "constant"] = Field(default="linear", description="rising from the factor, or staying there")
    drops: tuple[float, ...] = Field(default=(), description="shares of the stage at which the rate falls")
    factors: tuple[float, ...] = Field(default=(), description="of the rate, from each drop on; by default a tenth each time")

    @model_validator(mode="after")
    def _one_factor_for_each_drop(self) -> "ScheduleOptions":
        if self.factors and len(self.factors) != len(self.drops):
            raise ValueError(f"got {len(self.factors)} factors for {len(self.drops)} drops: give one for each, or none")
        return self


class AugmentOptions(_Options):
    """What is done to training images; None or 0 leaves a step out."""

    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    transpose: float = Field(default=0.0, ge=0, le=1)
    short_sides: tuple[int, ...] = Field(default=(), description="short side drawn from these, px, input frame")
    crop_px: Annotated[int, Field(gt=0)] | Literal["fit"] | None = Field(
        default=None, description="side of a random window, px, input frame; fit: chosen by the data, None: whole images"
    )
    jitter: tuple[float, float] | Literal["fit"] = Field(
        default=(1.0, 1.0), description="range of random scales, with crop_px; fit: chosen by the data"
    )
    jitter_axis: Literal["log", "linear"] = Field(
        default="log",
        description="axis the scales are even on; linear, from 0.1 to 2: large-scale jitter (Ghiasi et al., 2021)",
    )
    color: float = Field(default=0.0, ge=0, le=1, description="strength of brightness, contrast and saturation changes")
    copy_paste: float = Field(default=0.0, ge=0, le=1, description="probability that objects of another image are pasted in")

    @model_validator(mode="after")
    def _one_scale(self) -> "AugmentOptions":
        if self.short_sides and self.crop_px is not None:
            raise ValueError("short_sides and crop_px both choose the scale: give one of them")
        if self.jitter != "fit" and not 0 < self.jitter[0] <= self.jitter[1]:
            raise ValueError(f"jitter is {self.jitter}, expected low <= high, both positive")
        return self


class PatchOptions(_Options):
    """Windows around objects, which systems of proposals learn from in place of whole images."""

    kinds: dict[PatchKind, Annotated[float, Field(gt=0)]] = Field(min_length=1, description="shares of batches")
    batches_per_epoch: int = Field(gt=0)
    rule: Literal["paper", "official"] = Field(default="paper", description="which windows teach scores")
    min_area_px: float = Field(default=100, ge=0, description="of the mask of objects that teach, original images")
    min_side_px: float = Field(default=5, ge=0, description="of their boxes")
    validation_batches: int = Field(default=8, gt=0, description="the same ones, whenever the validation loss is computed")


class Stage(_Options):
    """A stretch of training with one set of trainable parts."""

    epochs: float = Field(gt=0)
    batch_size: int = Field(gt=0, description="images of a step, over all micro-batches")
    micro_batches: int = Field(default=1, gt=0, description="parts a batch is computed in, to save memory")
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    augment: AugmentOptions = AugmentOptions()
    patches: PatchOptions | None = Field(default=None, description="learn from patches instead of whole images")
    is_scored: bool = Field(default=True, description="predict and score validation images; False where the model is not whole")
    frozen: tuple[str, ...] = Field(default=(), description="parts that do not learn: beginnings of parameter names")
    losses: tuple[str, ...] = Field(default=(), description="terms of the loss that are learnt; by default all")

    @property
    def lr(self) -> float:
        """Learning rate of its batches, in proportion to their size where the optimizer says so (Goyal et al., sec. 2.1)."""
        return self.optimizer.lr * self.batch_size / (self.optimizer.lr_images or self.batch_size)

    def in_words(self, processes: int = 1) -> str:
        """What a step is and how fast it learns, for people."""
        parts = processes * self.micro_batches
        images = f"{self.batch_size} image{'s' if self.batch_size > 1 else ''}"
        split = f" in {parts} parts of {self.batch_size // parts}" if parts > 1 else ""
        given, meant = self.optimizer.lr, self.optimizer.lr_images
        scaled = f" ({given:g} for {meant} images, in proportion)" if meant not in (None, self.batch_size) else ""
        rate = f"{self.optimizer.kind}, learning rate {self.lr:g}{scaled}"
        return f"steps of {images}{split}, {self.epochs:g} epochs, {rate}"

    @model_validator(mode="after")
    def _even(self) -> "Stage":
        if self.batch_size % self.micro_batches:
            raise ValueError(f"a batch of {self.batch_size} cannot be computed in {self.micro_batches} equal parts")
        if self.patches is not None and (self.augment.short_sides or self.augment.crop_px is not None):
            raise ValueError("patches have a scale of their own: leave augment.short_sides and augment.crop_px away")
        if self.patches is not None and self.augment.copy_paste:
            raise ValueError("patches show one object each, into which none is pasted: leave augment.copy_paste away")
        return self


class DataOptions(_Options):
    """Where the images are."""

    path: str
    images: str | None = None
    val_fraction: float | None = Field(default=None, gt=0, lt=1)
    classes: tuple[str, ...] | None = None
    invalid: Literal["stop", "skip"] = "stop"
    keypoints: bool | None = Field(
        default=None, description="read COCO's file of people with keypoints; by default who learns them"
    )


class Recipe(_Options):
    """A whole run."""

    system: str
    arguments: dict[str, Any] = Field(default_factory=dict, description="for the system's builder, by name")
    stages: tuple[Stage, ...] = Field(min_length=1)
    data: DataOptions | None = Field(default=None, description="filled in when the run starts")
    backbone_weights: str | None = Field(
        default=None,
        description="a file, a run's too, or 'timm' to download ImageNet weights from there; a run records which, 'timm:TAG'",
    )
    proposals: str | None = Field(default=None, description="for detectors on them: a run, or a folder of train.json, val.json")
    train_on: Literal["all", "objects", "keypoints"] = Field(
        default="all", description="training images: all, those with objects, or those with visible keypoints"
    )
    flip_pairs: tuple[tuple[str, str], ...] | None = Field(
        default=None, description="keypoints that trade places in left-right flips; by default names that differ in the side"
    )
    fit_sizes: bool = Field(default=False, description="choose sizes that are not named here by those of the training objects")
    fitted: tuple[str, ...] = Field(default=(), description="what was found and chosen when the run began")
    intensity: Intensity = Intensity()
    ema_decay: float = Field(ge=0, lt=1, description="averaging of the weights; 0 switches it off")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluate_every: int = Field(default=1, gt=0, description="epochs")
    patience: int | None = Field(
        default=None, gt=0, description="evaluations without a better score after which a stage ends; None: it never does"
    )
    checkpoint_steps: int | None = Field(default=None, gt=0, description="also save within an epoch")
    workers: int = Field(default=1, ge=0, description="processes that read images")
    seed: int = 0

    @field_validator("system")
    @classmethod
    def _of_any_version(cls, name: str) -> str:
        return current_name(name)

    @model_validator(mode="before")
    @classmethod
    def _as_version_0_1_said_it(cls, data: Any) -> Any:
        if isinstance(data, dict) and "octaves_from_data" in data:
            data = {**data, "fit_sizes": data["octaves_from_data"]}
            del data["octaves_from_data"]
        return data

    @model_validator(mode="after")
    def _classes_come_from_the_data(self) -> "Recipe":
        if "num_classes" in self.arguments:
            raise ValueError("num_classes comes from the data: choose classes with --classes")
        return self

    @model_validator(mode="after")
    def _proposals_know_no_pasted_objects(self) -> "Recipe":
        if self.proposals is not None and any(stage.augment.copy_paste for stage in self.stages):
            raise ValueError("proposals were made on images without pasted objects: leave augment.copy_paste away")
        return self

    @model_validator(mode="after")
    def _patience_needs_scores(self) -> "Recipe":
        if self.patience is not None and not any(stage.is_scored for stage in self.stages):
            raise ValueError("patience counts evaluations without a better score, but no stage is scored: leave it away")
        return self

    def with_changes(self, changes: Sequence[str]) -> "Recipe":
        """A copy with fields set from texts like "optimizer.lr=0.01"; a field of a stage is set in every stage.

        Raises:
            ValueError: no such field, with the nearest names; or a value that does not fit.
        """
        data = self.model_dump(mode="json")
        for change in changes:
            path, equals, text = change.partition("=")
            if not equals:
                raise ValueError(f"got --set {change!r}, expected name=value, for example optimizer.lr=0.01")
            keys = path.strip().split(".")
            targets = data["stages"] if keys[0] in Stage.model_fields else [data]
            for target in targets:
                _set(target, keys, _parse(text, change), path)
                if keys[-2:] == ["optimizer", "lr"] and "lr_images" not in " ".join(changes):
                    _set(target, [*keys[:-1], "lr_images"], None, path)  # a rate that is given is taken as it is
        return parse_recipe(data)

    def to_yaml(self) -> str:
        """As recipe.yaml holds it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_recipe(data: Any) -> Recipe:
    """A recipe from plain data.

    Raises:
        ValueError: a field that does not exist or does not fit, by name.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"the recipe does not fit:{complaints(error)}") from None


class DataChoices(TypedDict, total=False):
    """What may be said of a data set beside its path, wherever images are learnt from.

    images: image folder of a single annotation file.
    val_fraction: share of a single file's images that is kept for validation.
    classes: names of the classes to use; by default all.
    skip_invalid: leave bad annotations out instead of stopping.
    """

    images: str | Path | None
    val_fraction: float | None
    classes: Sequence[str] | None
    skip_invalid: bool


def data_options(path: str | Path, choices: DataChoices) -> DataOptions:
    """Where the images are, of what was asked for.

    Raises:
        ValueError: a value that does not fit, by name.
    """
    images, classes = choices.get("images"), choices.get("classes")
    try:
        return DataOptions(
            path=str(path),
            images=None if images is None else str(images),
            val_fraction=choices.get("val_fraction"),
            classes=None if classes is None else tuple(classes),
            invalid="skip" if choices.get("skip_invalid") else "stop",
        )
    except ValidationError as error:
        raise ValueError(f"this does not fit the data:{complaints(error)}") from None


def check_names(function: Callable[..., object], choices: Mapping[str, object], known: type) -> None:
    """Make sure that a function which takes choices by name got none that it does not know.

    Args:
        known: the typed dictionary of its choices.

    Raises:
        TypeError: it got one, as Python says it, with the nearest name.
    """
    names = [*inspect.signature(function).parameters, *known.__annotations__]
    for name in choices:
        if name not in known.__annotations__:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}")


def complaints(error: ValidationError) -> str:
    """What does not fit, each on a line of its own."""
    errors = error.errors()
    errors = [e for e in errors if e["type"] != "too_short"] or errors  # a list lacks what did not fit
    lines = (f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']} (got {_short(e['input'])})" for e in errors)
    return "".join(f"\n  {line}" for line in lines)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_recipe(path: Path) -> Recipe:
    """A saved recipe.yaml."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a recipe: {error}") from None
    try:
        return parse_recipe(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Values by name from texts like "short_px=640".

    Raises:
        ValueError: a text without an equals sign, or whose value is not YAML.
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"got --set {text!r}, expected name=value, for example short_px=640")
        values[name.strip()] = _parse(value, text)
    return values


def _parse(text: str, change: str) -> Any:
    """A value as YAML reads it, and 1e-3 as a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"got --set {change!r}, whose value is not YAML: try a number, a word, or [a, b]") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _set(target: Any, keys: list[str], value: Any, path: str) -> None:
    """Set what a path like "optimizer.lr" or "stages.0.epochs" names; a system's arguments are checked by its builder."""
    for i, name in enumerate(keys):
        is_last = i == len(keys) - 1
        key: Any = int(name) if isinstance(target, list) and name.isdigit() else name
        exists = key in target if isinstance(target, dict) else isinstance(target, list) and key in range(len(target))
        if not exists and not (is_last and keys[0] == "arguments" and isinstance(target, dict)):
            known = list(target) if isinstance(target, dict) else []
            known += list(Stage.model_fields) if i == 0 else []
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'no such fields below it'}"
            )
            raise ValueError(f"the recipe has no field {path!r}: {hint}")
        if is_last:
            target[key] = value
        else:
            target = target[key]
