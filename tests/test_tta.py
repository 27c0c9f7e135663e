"""Test-time augmentation: maps of flipped scans are flipped back, combined and smoothed."""

import json

import numpy as np
import pytest

from weakunet.data.volumes import Volume
from weakunet.detection import tta
from weakunet.detection.tta import SMOOTHING_VOX, average_over_flips, smooth
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import load_model, save_checkpoint
from weakunet.util.cli import InputError


def test_flips_are_undone_and_the_median_leaves_out_what_few_of_them_show(monkeypatch):
    monkeypatch.setattr(tta, "SMOOTHING_VOX", 0)
    array = np.arange(1.0, 2 * 3 * 4 + 1).reshape(2, 3, 4)

    def mark(volume, shift):  # the low-x edge of what it is given, and one voxel of the scan
        shifts.append(shift.tolist())
        marked = np.zeros_like(volume.array)
        marked[..., 0] = 1
        marked[volume.array == array[1, 1, 2]] = 8
        return float(volume.array[0, 0, 0]), marked

    shifts = []
    count, middle = average_over_flips(mark, Volume(array, np.eye(4)), "x")
    assert shifts == [[0, 0, 0], [0, 0, 1]]  # each at another place, but only along x
    expected = np.zeros_like(array)
    expected[..., [0, 3]] = 0.5  # seen in one flip of two
    expected[1, 1, 2] = 8  # in both
    assert count == (array[0, 0, 0] + array[0, 0, 3]) / 2
    np.testing.assert_array_equal(middle, expected)

    def mark_corner(volume, shift):
        marked = np.zeros_like(volume.array)
        marked[0, 0, 0] = 1
        return marked

    _, middle = average_over_flips(mark_corner, Volume(array, np.eye(4)), "zyx")
    assert middle.max() == 0  # one flip of 8


def test_without_axes_the_scan_alone_is_taken():
    array = np.ones((3, 4, 5))
    array[1, 2, 2] = 5
    count, alone = average_over_flips(lambda volume, shift: volume.array, Volume(array, None), "")
    assert count == 0
    np.testing.assert_array_equal(alone, smooth(array, array > 0))


def test_smooth_keeps_the_middle_and_gives_nothing_outside():
    array = np.zeros((9, 9, 9))
    array[4, 4, 4] = 1
    inside = np.ones(array.shape, bool)
    inside[0] = False
    array[0] = 7  # no matter what is there
    result = smooth(array, inside)
    assert result.argmax() == np.ravel_multi_index((4, 4, 4), array.shape)
    # the ratio of a sampled Gaussian's first two values
    assert np.isclose(result[4, 4, 5] / result[4, 4, 4], np.exp(-0.5 / SMOOTHING_VOX**2))
    assert (result[0] == result[1:].min()).all()


def test_checkpoint_knows_the_axes_and_one_from_before_has_none(tmp_path):
    model = WeakUNet([2, 3], rng=np.random.default_rng(0))
    model.flips = "zy"
    save_checkpoint(tmp_path / "new.npz", model)
    assert load_model(tmp_path / "new.npz").flips == "zy"
    with np.load(tmp_path / "new.npz") as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    for flips, accepted in ((None, True), ("zz", False), (["z"], False), (3, False)):
        changed = {name: value for name, value in header.items() if name != "flips"}
        changed |= {} if flips is None else {"flips": flips}
        np.savez(tmp_path / "other.npz", header=json.dumps(changed), **arrays)
        if accepted:
            assert load_model(tmp_path / "other.npz").flips == ""
        else:
            with pytest.raises(InputError, match="flipped"):
                load_model(tmp_path / "other.npz")
