"""Favourite classes and how selective units are, by hand."""

import dataclasses

import numpy as np
import pytest

from nstvis.units.table import Layer

NAN = np.nan


def layer(class_mean):
    """Units of which only the classes' means are known."""
    means = np.array(class_mean, np.float32)
    none = {field.name: np.zeros(len(means)) for field in dataclasses.fields(Layer)}
    return Layer(**none | {"class_mean": means})


def test_a_class_without_images_is_nobody_s_favourite():
    units = layer([[NAN, -3, -1], [2, NAN, 1], [NAN, NAN, NAN]])
    assert units.favourite().tolist() == [2, 0, -1]


def test_a_unit_that_is_the_same_for_all_classes_has_no_favourite():
    assert layer([[0, 0, 0], [2, 2, 2]]).favourite().tolist() == [-1, -1]
    assert layer(np.zeros((2, 0))).favourite().tolist() == [-1, -1]


def test_selectivity_is_that_of_morcos_over_the_classes_that_have_images():
    units = layer([[3, 1, 2], [3, NAN, 1], [-1, -2, NAN], [4, NAN, NAN], [0, 0, 5]])
    wanted = [(3 - 1.5) / (3 + 1.5), (3 - 1) / (3 + 1), 0, 0, 1]
    assert units.selectivity().tolist() == pytest.approx(wanted)
    assert layer(np.ones((2, 1))).selectivity().tolist() == [0, 0]
