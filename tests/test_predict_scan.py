"""One scan through the network: padded and cropped back, and a count that knows no box."""

import numpy as np
import pytest

from weakunet import predict
from weakunet.data.slices import front_padding
from weakunet.data.volumes import Volume
from weakunet.detection.predict_scan import predict_scan
from weakunet.model import WeakUNet

AFFINE = np.diag([0.5, 0.6, 0.8, 1])


def prepared_volume(seed=0, shape=(9, 10, 13)):
    array = np.random.default_rng(seed).uniform(0.1, 1, shape).astype(np.float32)
    array[0], array[-1, -1, -1] = 0, 1
    return Volume(array, AFFINE)


@pytest.mark.parametrize("shift", [0, (2, 1, 7)])
def test_odd_size_is_padded_and_cropped_back(shift):
    volume = prepared_volume()
    model = WeakUNet(channels=(2, 3, 4), rng=np.random.default_rng(0))
    model.global_pool.blocks = 5.0
    count, heatmap = predict_scan(model, volume, shift=shift)
    front = (front_padding(volume.array[1:], 4) + shift) % 4  # the first slice is outside the ROI
    z, y, x = front - (1, 0, 0)
    assert (0 <= front).all() and (front < 4).all()
    padded = np.zeros((1, 1, *(-(-(front + (8, 10, 13)) // 4) * 4)), np.float32)
    padded[0, 0, z + 1 : z + 9, y : y + 10, x : x + 13] = volume.array[1:]
    expected_count, expected = model.predict(padded)
    assert isinstance(count, float) and count == pytest.approx(float(expected_count[0]), rel=1e-5)
    expected = expected[0, 0, z : z + 9, y : y + 10, x : x + 13]
    np.testing.assert_allclose(heatmap[1:], expected[1:], rtol=0, atol=1e-6)
    assert np.all(heatmap[0] == expected[1:].min())


def test_older_network_sees_a_small_scan_padded_to_the_size_that_it_was_trained_on():
    rng = np.random.default_rng(0)
    model = WeakUNet((2, 3), block=2, region=False, rng=rng)  # a mean over blocks: size matters
    small = np.zeros((5, 6, 7), np.float32)
    small[1:-1, 1:-1, 1:-1] = rng.uniform(0.1, 1, (3, 4, 5))
    padded = np.zeros((8, 12, 10), np.float32)
    padded[:5, :6, :7] = small
    unpadded_count, _ = predict_scan(model, Volume(small, np.eye(4)))
    model.shape = (8, 12, 10)
    count, heatmap = predict_scan(model, Volume(small, np.eye(4)))
    expected, _ = predict_scan(model, Volume(padded, np.eye(4)))
    assert heatmap.shape == small.shape
    assert count == pytest.approx(expected, rel=1e-6)
    assert count != pytest.approx(unpadded_count, rel=1e-3)


def region_network(channels=(2, 3, 4)):
    model = WeakUNet(channels, convs_per_level=2, block=4, rng=np.random.default_rng(1))
    model.global_pool.blocks = 6.0
    for name, value in model.params.items():
        if name.endswith(".b"):
            value[:] = 0.3  # a network that answers to nothing at all would hide what zeros do
    return model


@pytest.mark.parametrize("zeros", [1, 2, 4, 7, 16])
def test_zeros_around_a_scan_change_neither_count_nor_heatmap(zeros):
    model, volume = region_network(), prepared_volume()
    count, heatmap = predict_scan(model, volume)
    around = Volume(np.pad(volume.array, zeros), AFFINE)
    again, larger = predict_scan(model, around)
    assert again == count != 0
    np.testing.assert_array_equal(larger[(slice(zeros, -zeros),) * 3], heatmap)


def test_network_cannot_tell_outside_the_roi_from_outside_the_array():
    model, array = region_network(), prepared_volume(shape=(8, 12, 8)).array[None, None]
    padded = np.pad(array, [(0, 0), (0, 0), (4, 4), (4, 8), (0, 4)])
    np.testing.assert_allclose(model.predict(padded)[0], model.predict(array)[0], rtol=1e-6)


def test_counts_of_two_regions_add_up():
    model, rng = region_network(), np.random.default_rng(2)
    one, two = (rng.uniform(0.1, 1, (8, 8, 8)).astype(np.float32) for _ in "12")
    both = np.concatenate([one, np.zeros((8, 8, 8), np.float32), two], axis=2)
    counts = [float(model.predict(a[None, None])[0][0]) for a in (one, two, both)]
    assert counts[2] == pytest.approx(counts[0] + counts[1], rel=1e-6)


def test_only_the_counted_slice_is_pooled_wherever_the_scan_was_cropped():
    model, volume = region_network(), prepared_volume(shape=(60, 8, 8))
    count, _ = predict_scan(model, volume, 30)
    whole, _ = predict_scan(model, volume)
    assert count != pytest.approx(whole, rel=0.1)
    around = Volume(np.pad(volume.array, [(5, 0), (0, 0), (0, 0)]), AFFINE)
    assert predict_scan(model, around, 35)[0] == count
    far = volume.array.copy()
    far[1:3] = far[2:0:-1]  # too far from the slice to be seen from it
    assert predict_scan(model, Volume(far, AFFINE), 30)[0] == pytest.approx(count, rel=1e-6)


def test_box_larger_than_in_training_is_called_out_where_the_count_depends_on_it():
    volume, rng = prepared_volume(shape=(8, 8, 12)), np.random.default_rng(0)
    for pooling, region, trained, said in (
        ("lmax", False, (8, 8, 8), True),
        ("mean", True, (8, 8, 8), True),  # the mean has no region
        ("lmax", False, (8, 8, 12), False),
        ("lmax", True, (8, 8, 8), False),
        ("max", True, (8, 8, 8), False),
    ):
        model = WeakUNet((2, 3), pooling=pooling, region=region, rng=rng)
        model.shape = trained
        note = predict.warn_of_larger_box(model, volume)
        assert (note is not None and "(8, 8, 12)" in note) == said, (pooling, region, trained)
