"""Proposals of many images: the best of each."""

import pytest
import torch

from maskwright.data.proposals import Proposals
from maskwright.structures import Masks


def entry(image_id, score, x, **more):
    return {"image_id": image_id, "category_id": 1, "score": score, "bbox": [x, 2.0, 4.0, 6.0], **more}


def masked(image_id, score, x):
    dense = torch.zeros(1, 20, 40, dtype=torch.bool)
    dense[0, 2:8, x : x + 4] = True
    (code,) = Masks.from_dense(dense).to_rles()
    return entry(image_id, score, float(x), segmentation=code)


def test_the_best_of_each_image_are_kept_with_their_own_boxes_and_masks():
    mixed = [
        masked(7, 0.1, 1),
        masked(3, 0.2, 9),
        masked(7, 0.9, 5),
        masked(3, 0.8, 13),
        masked(7, 0.5, 21),
        masked(3, 0.4, 17),
    ]
    proposals = Proposals(mixed, most=2)
    assert len(proposals) == 4
    for image_id, scores, lefts in ((7, [0.9, 0.5], [5, 21]), (3, [0.8, 0.4], [13, 17])):
        found = proposals.of(image_id, (20, 40), with_masks=True)
        assert found.scores.tolist() == pytest.approx(scores)
        assert found.boxes.tolist() == [[x, 2, x + 4, 8] for x in lefts]
        assert found.masks.boxes().tolist() == found.boxes.tolist()
        assert proposals.of(image_id, (20, 40), with_masks=False).masks is None
    assert len(proposals.of(5, (20, 40), with_masks=True)) == 0


def test_boxes_alone_have_no_masks_and_nothing_lacks_none():
    assert not Proposals([masked(1, 0.5, 1), entry(1, 0.4, 3.0)], most=9).has_masks
    assert Proposals([], most=9).has_masks
    assert len(Proposals([], most=9).of(1, (20, 40), with_masks=True)) == 0
