"""Random transforms: what they do to a volume, by hand and against scipy."""

import numpy as np
import pytest
from scipy import ndimage

from weakunet.training.augment import draw_transform, warp


def test_warp_agrees_with_scipy_when_flipped_and_shifted_by_whole_voxels():
    rng = np.random.default_rng(0)
    for _ in range(100):
        volume = rng.standard_normal(rng.integers(1, 7, 3))
        matrix = draw_transform(rng, volume.shape, shift_vox=3)
        expected = ndimage.affine_transform(
            volume, matrix[:, :3], matrix[:, 3], order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(warp(volume, matrix), expected, atol=1e-12)


def test_warp_moves_a_voxel_by_hand():
    volume = np.zeros((3, 4, 5))
    volume[1, 2, 4] = 1
    identity = np.eye(3, 4)
    np.testing.assert_array_equal(warp(volume, identity), volume)
    shift = identity.copy()
    shift[:, 3] = (0, 1, 2)  # result[t] = volume[t + (0, 1, 2)]
    assert np.argwhere(warp(volume, shift)).tolist() == [[1, 1, 2]]
    mirror = identity.copy()
    mirror[2] = (0, 0, -1, 4)  # x -> 4 - x
    assert np.argwhere(warp(volume, mirror)).tolist() == [[1, 2, 0]]
    half = identity.copy()
    half[2, 3] = 0.25  # between two voxels: trilinear weights
    np.testing.assert_allclose(warp(volume, half)[1, 2, 3:], (0.25, 0.75))


def test_warp_is_zero_when_everything_is_shifted_outside():
    matrix = np.eye(3, 4)
    matrix[0, 3] = 3
    assert not warp(np.ones((3, 2, 2)), matrix).any()


def test_rotation_and_scaling_keep_the_middle_and_stay_in_their_limits():
    rng = np.random.default_rng(1)
    shape, mm = (9, 11, 13), np.diag([3, 0.5, 0.7])  # a rotation in millimetres
    middle = (np.array(shape) - 1) / 2
    for _ in range(50):
        matrix = draw_transform(rng, shape, "", 0, 10, 0.1, spacing_mm=np.diag(mm))
        np.testing.assert_allclose(matrix[:, :3] @ middle + matrix[:, 3], middle)
        zoom = np.cbrt(np.linalg.det(matrix[:, :3]))
        assert 0.9 <= zoom <= 1.1
        rotation = mm @ matrix[:, :3] @ np.linalg.inv(mm) / zoom
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        angle = np.degrees(np.arccos((np.trace(rotation) - 1) / 2))
        assert angle <= 10 * np.sqrt(3) + 1e-6


@pytest.mark.parametrize("axis, name", list(enumerate("zyx")))
def test_only_the_axes_that_flips_names_are_mirrored(axis, name):
    rng = np.random.default_rng(2)
    signs = np.array(
        [np.diag(draw_transform(rng, (4, 4, 4), flips=name)[:, :3]) for _ in range(40)]
    )
    assert set(signs[:, axis]) == {-1.0, 1.0}
    assert (np.delete(signs, axis, axis=1) == 1).all()


def test_one_setting_does_not_change_what_the_others_draw():
    shape, settings = (4, 6, 8), {"shift_vox": 2, "rotate_deg": 5.0, "scale": 0.1}
    plain = draw_transform(np.random.default_rng(3), shape, **settings)
    no_shift = draw_transform(np.random.default_rng(3), shape, **(settings | {"shift_vox": 0}))
    np.testing.assert_array_equal(plain[:, :3], no_shift[:, :3])
    assert np.abs(plain[:, 3] - no_shift[:, 3]).max() in (1, 2)


def test_transform_in_plane_moves_nothing_along_z():
    rng = np.random.default_rng(4)
    for _ in range(40):
        matrix = draw_transform(rng, (6, 8, 10), rotate_deg=20, scale=0.2, in_plane=True)
        np.testing.assert_array_equal(matrix[0], (1, 0, 0, 0))
        np.testing.assert_array_equal(matrix[1:, 0], 0)
    assert not np.allclose(matrix[1:, 1:3], np.eye(2))
