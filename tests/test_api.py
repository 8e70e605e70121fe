"""The verbs take what they say they take, and nothing else."""

import inspect

import pytest

import maskwright as mw
from maskwright.comparison.comparing import ComparisonChoices
from maskwright.comparison.scoring import ScoringChoices
from maskwright.recipes.recipe import DataChoices

NOWHERE = {"data": "nowhere", "out": "nowhere"}
TAKEN = {
    "train": (
        DataChoices,
        "system data out epochs minutes images val_fraction classes skip_invalid init changes device console",
    ),
    "evaluate": (
        ScoringChoices,
        "run data split images max_detections class_agnostic skip_invalid arguments report device console",
    ),
    "score": (ScoringChoices, "predictions data split images max_detections class_agnostic skip_invalid report console"),
    "compare": (
        ComparisonChoices,
        "entries data out epochs minutes seeds changes images val_fraction classes skip_invalid max_detections by device"
        " console",
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_every_name_is_taken_and_described(name):
    choices, names = TAKEN[name]
    verb = getattr(mw, name)
    own = {n for n, p in inspect.signature(verb).parameters.items() if p.kind is not p.VAR_KEYWORD}
    assert own | set(choices.__annotations__) == set(names.split())
    described = choices.__doc__ + (DataChoices.__doc__ if choices is ComparisonChoices else "")
    listed = (mw.evaluate if name == "score" else verb).__doc__.split("choices: ")[1].split(": see")[0]
    assert set(choices.__annotations__) == set(listed.split(", "))
    assert all(f"    {choice}: " in described for choice in choices.__annotations__)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mw.train("mask-rcnn-small", **NOWHERE, epoch=3), r"train\(\) .* argument 'epoch': did you mean epochs\?"),
        (lambda: mw.train("mask-rcnn-small", **NOWHERE, split="val"), r"train\(\) got an unexpected keyword argument 'split'"),
        (lambda: mw.evaluate("runs/a", data="nowhere", max_detection=[3]), r"evaluate\(\) .* did you mean max_detections\?"),
        (lambda: mw.score("a.json", data="nowhere", device="cpu"), r"score\(\) got an unexpected keyword argument 'device'"),
        (lambda: mw.compare(["mask-rcnn-small"], **NOWHERE, seed=3), r"compare\(\) .* argument 'seed': did you mean seeds\?"),
    ],
)
def test_other_names_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
