"""Colours of classes and their legend."""

import numpy as np
from PIL import Image

from convmae_deploy.tasks.label_colours import (
    LEGEND_LINE,
    UNLABELLED,
    class_areas,
    coloured,
    overlay,
    palette,
    with_legend,
)


def test_every_class_has_its_own_colour_whatever_their_number() -> None:
    table = palette(150)
    assert table.shape == (151, 3) and len(np.unique(table, axis=0)) == 151
    assert (palette(11)[:11] == table[:11]).all() and tuple(palette(11)[11]) == UNLABELLED
    neighbours = np.abs(np.diff(table[:150].astype(int), axis=0)).sum(axis=1)
    assert neighbours.min() > 100


def test_labels_become_their_colours_and_no_class_becomes_black() -> None:
    labels = np.array([[0, 2], [255, 1]], np.uint8)
    colours = coloured(labels, 3)
    assert colours.dtype == np.uint8
    assert colours[0, 1].tolist() == palette(3)[2].tolist() and tuple(colours[1, 0]) == UNLABELLED


def test_a_photo_shines_through_its_labels() -> None:
    labels = np.zeros((2, 2), np.uint8)
    light, dark = (np.asarray(overlay(Image.new("RGB", (2, 2), level), labels, 3)) for level in ("white", "black"))
    assert (light.astype(int) - dark).min() > 90 and dark.max() > 100


def test_a_legend_names_the_classes_in_as_many_lines_as_they_need() -> None:
    names = [f"class of number {index}" for index in range(12)]
    picture = Image.new("RGB", (300, 50), (1, 2, 3))
    one, many = with_legend(picture, names, [4]), with_legend(picture, names, range(12))
    assert one.width == many.width == 300
    assert one.height - 50 < 2 * LEGEND_LINE < many.height - 50
    assert (np.asarray(many)[:50] == (1, 2, 3)).all()
    below = np.asarray(one)[50:].reshape(-1, 3)
    assert (below == palette(12)[4]).all(axis=1).sum() == 12 * 12
    drawn = {tuple(colour) for colour in np.asarray(many)[50:].reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in palette(12)[:12].tolist()} <= drawn
    assert with_legend(picture, names, []).size == picture.size


def test_classes_are_ordered_by_their_area_and_what_is_no_class_is_left_out() -> None:
    areas = class_areas(np.array([[3, 3, 3], [1, 255, 255], [255, 0, 1]]), 5)
    assert list(areas.items()) == [(3, 3), (1, 2), (0, 1)]
