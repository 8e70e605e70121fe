import numpy as np
import torch
from PIL import Image

from maskwright.reports import contact_sheet, draw_instances
from maskwright.structures import Instances, KeypointSchema, Masks


def some():
    dense = torch.zeros(2, 50, 70, dtype=torch.bool)
    dense[0, 10:30, 10:30] = True
    dense[1, 20:40, 40:60] = True
    masks = Masks.from_dense(dense)
    return Instances((50, 70), boxes=masks.boxes(), labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.5]), masks=masks)


def test_masks_are_tinted_outlined_and_the_rest_left_alone():
    image = np.full((50, 70, 3), 100, dtype=np.uint8)
    picture = np.asarray(draw_instances(image, some(), ["a", "b"]))
    zoom = picture.shape[0] // 50
    assert picture.shape == (50 * zoom, 70 * zoom, 3)
    assert picture.shape[0] >= 600
    assert (picture[45 * zoom :, :] == 100).all()
    inside, edge = picture[25 * zoom, 20 * zoom], picture[25 * zoom, 10 * zoom]
    assert not (inside == 100).all()
    assert np.ptp(edge.astype(int)) > np.ptp(inside.astype(int))  # the outline is the pure color
    other = picture[35 * zoom, 50 * zoom]
    assert not (other == inside).all()
    assert (image == 100).all()


def test_boxes_are_drawn_where_there_are_no_masks():
    found = Instances((50, 70), boxes=torch.tensor([[10.0, 10, 30, 30]]), labels=torch.tensor([0]))
    picture = np.asarray(draw_instances(np.zeros((50, 70, 3), dtype=np.uint8), found, ["a"]))
    assert picture[10 * 13 + 1 :, :, :].any()
    assert not picture[45 * 13 :].any()


def test_nothing_found_and_a_pixel_draw_too():
    nothing = Instances.empty((1, 1), has_masks=True)
    assert draw_instances(np.zeros((1, 1, 3), dtype=np.uint8), nothing, ["a"]).size == (640, 640)


def test_contact_sheet_places_pictures():
    red, blue = Image.new("RGB", (100, 50), "red"), Image.new("RGB", (50, 100), "blue")
    sheet = contact_sheet([red, blue, red], columns=2, tile_px=60)
    assert sheet.size == (120, 120)
    assert sheet.getpixel((30, 30)) == (255, 0, 0)
    assert sheet.getpixel((90, 30)) == (0, 0, 255)


def test_colors_can_be_given_and_labels_then_stay_away():
    image = np.zeros((640, 640, 3), dtype=np.uint8)
    mask = torch.zeros(1, 640, 640, dtype=torch.bool)
    mask[0, 100:300, 100:300] = True
    masks = Masks.from_dense(mask)
    objects = Instances(image_size=(640, 640), boxes=masks.boxes(), labels=torch.tensor([0]), masks=masks)
    picture = np.asarray(draw_instances(image, objects, ["a"], colors=[(10, 200, 30)], opacity=0.5))
    assert picture[200, 200].tolist() == [5, 100, 15]
    assert picture[100, 200].tolist() == [10, 200, 30]
    assert not picture[:100].any()


def test_skeletons_join_the_points_that_are_there():
    image = np.zeros((700, 700, 3), dtype=np.uint8)
    points = torch.tensor([[[100.0, 100, 0.9], [600, 100, 1], [600, 600, 0.001]]])
    found = Instances((700, 700), boxes=torch.tensor([[50.0, 50, 650, 650]]), labels=torch.tensor([0]), keypoints=points)
    schema = KeypointSchema(names=("a", "b", "c"), skeleton=((0, 1), (1, 2)))
    bare = np.asarray(draw_instances(image, found, ["x"], colors=[(200, 30, 30)]))
    picture = np.asarray(draw_instances(image, found, ["x"], colors=[(200, 30, 30)], schema=schema))
    changed = (picture != bare).any(axis=2)
    assert changed[100, 150:550].all()  # from a to b
    assert not changed[150:550, 600].any()  # nobody is sure of c
    assert (picture[100, 100] == 255).all()
