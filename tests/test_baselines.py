"""The other methods: answers by hand, scipy's and numerical ones."""

import numpy as np
import pytest
from scipy import ndimage

from weakunet.compare import baselines
from weakunet.data.cohort import LoadedScan
from weakunet.data.volumes import Volume
from weakunet.layers.enlarge3d import enlarge3d
from weakunet.model import WeakUNet

METHODS = [baselines.saliency, baselines.guided_backprop, baselines.grad_cam]


def volume(shape, seed=0):
    """Random intensities in (0, 1] with a corner outside the ROI."""
    array = 1 - np.random.default_rng(seed).random(shape)
    array[0, 0, :2] = 0
    return Volume(array, np.eye(4))


def network(pooling="mean", upsampling=True, channels=(3, 4), region=True):
    rng = np.random.default_rng(5)
    return WeakUNet(channels, 1, pooling, 4, upsampling, region, rng=rng, dtype=np.float64)


def scan(centres_zyx, shape, slice_index=None):
    centres = np.array(centres_zyx, float)
    return LoadedScan("s", Volume(np.ones(shape), np.eye(4)), 1, centres, slice_index)


# -- saliency --------------------------------------------------------------------------------------


def linear_network():
    """All ReLUs are active, so count = 3 mean(k * 4 (S - 0.4) + 50) + b."""
    model = network(channels=(1,))
    model.params["encoder0.conv0.b"][:] = 50
    model.params["linear.w"][:] = 3
    model.shape = (6, 5, 7)
    return model


def test_saliency_of_a_linear_network_is_its_kernel_summed_over_the_padded_scan():
    model, v = linear_network(), volume((4, 5, 6))
    kernel = model.params["encoder0.conv0.w"][0, 0]
    # S_v reaches every output of the padded volume that lies within one voxel of it
    reached = ndimage.convolve(np.ones((6, 5, 7)), kernel, mode="constant")
    expected = abs(3 * 4 * reached / (6 * 5 * 7))[:4, :5, :6]
    inside = v.array > 0
    found = baselines.saliency(model, v)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-10)
    np.testing.assert_array_equal(found[~inside], found[inside].min())


@pytest.mark.parametrize("upsampling", [True, False])
def test_guided_is_plain_where_every_gradient_is_positive(upsampling):
    model, v = network("lmax", upsampling), volume((4, 6, 4))
    assert not np.allclose(baselines.guided_backprop(model, v), baselines.saliency(model, v))
    for value in model.params.values():
        value[...] = abs(value)
    plain = baselines.saliency(model, v)
    assert plain.max() > 0
    np.testing.assert_allclose(baselines.guided_backprop(model, v), plain, rtol=1e-12)


# -- Grad-CAM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["max", "mean", "lmax"])
def test_grad_cam_without_upsampling_is_the_relu_of_the_heatmap_over_its_voxels(pooling):
    model, v = network(pooling, upsampling=False, region=False), volume((4, 6, 8))
    f = model.features(v.array[None, None])
    cam = np.maximum(model.heatmap(f), 0) / (2 * 3 * 4)
    expected = enlarge3d(cam, 2)[0, 0]
    assert expected.max() > 0
    inside = v.array > 0
    found = baselines.grad_cam(model, v)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-10, atol=1e-15)


def test_grad_cam_weighs_a_bottom_map_by_what_raising_all_of_it_adds_to_the_count():
    model, v = network("mean"), volume((4, 6, 8))
    bias = model.params["encoder1.conv0.b"]
    bias[:] = 20  # all of the bottom is active: a bias then raises its whole map
    bottom, scans, alpha = None, v.array[None, None], []
    for i in range(len(bias)):
        counts = []
        for h in (1e-5, -1e-5):
            bias[i] += h
            counts.append(model.forward(scans)[0])
            bias[i] -= h
        alpha.append((counts[0] - counts[1]) / 2e-5 / (2 * 3 * 4))
    bottom = model.encoder[1].y
    assert bottom.min() > 0
    cam = np.maximum(np.tensordot(alpha, bottom, axes=(0, 1)), 0)[:, None]
    inside = v.array > 0
    found = baselines.grad_cam(model, v)[inside]
    assert cam.max() > 0
    np.testing.assert_allclose(found, enlarge3d(cam, 2)[0, 0][inside], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_the_scans_shape_and_are_lowest_outside(method):
    v = volume((3, 5, 6))
    found = method(network("max"), v)
    assert found.shape == v.array.shape
    assert (found[v.array == 0] == found[v.array > 0].min()).all()


@pytest.mark.parametrize("method", METHODS)
def test_maps_on_cuda_are_those_of_numpy(cuda_on_cpu, monkeypatch, method):
    model, v = network("lmax"), volume((4, 4, 6))
    on_cuda = method(model, v)
    assert ("layers/globalpool3d", "localmax_backward") in cuda_on_cpu.launched
    monkeypatch.undo()
    reference = method(model, v)
    np.testing.assert_allclose(on_cuda, reference, rtol=0, atol=1e-12 * abs(reference).max())


# -- the weighted sum ------------------------------------------------------------------------------


def test_combination_is_the_weighted_sum():
    heatmap, image = np.array([8.0, -4.0]), np.array([0.5, 0.0])
    np.testing.assert_allclose(baselines.combine(heatmap, image, 0.75, 4.0), [1.625, -0.75])


def peaks(shape, **at):
    """Zeros with a peak of the given height at each x (x5=0.7: 0.7 at x = 5)."""
    array = np.zeros(shape)
    for x, height in at.items():
        array[..., int(x[1:])] = height
    return array


def test_weight_is_the_largest_with_which_both_maps_outvote_each_others_mistakes():
    shape = (1, 1, 30)
    heatmap = peaks(shape, x5=1.0, x15=0.78)  # the lesion at 15 is second in both
    image = peaks(shape, x25=1.0, x15=0.78)
    # 0.78 beats w and 1 - w for w between 0.22 and 0.78
    weight, scale = baselines.choose_weight([heatmap], [image], [scan([[0, 0, 15]], shape)], [1.2])
    assert (weight, scale) == (0.75, 1.0)


def test_scale_is_the_mean_maximum_and_equal_weights_give_the_pure_heatmap():
    shape = (1, 1, 30)
    maps = [peaks(shape, x5=2.0), peaks(shape, x5=6.0)]
    images = [peaks(shape, x5=1.0)] * 2
    scans = [scan([[0, 0, 5]], shape)] * 2
    assert baselines.choose_weight(maps, images, scans, [1, 1]) == (1.0, 4.0)
    assert baselines.choose_weight([-m for m in maps], images, scans, [0, 0]) == (1.0, 1.0)


def test_weight_is_chosen_in_the_slice_that_was_counted():
    shape = (3, 1, 30)
    heatmap, image = np.zeros(shape), np.zeros(shape)
    heatmap[1, 0, 5], heatmap[0, 0, 20] = 1.0, 2.0  # wrong in the slice, right outside
    image[1, 0, 15] = 1.0
    own = scan([[1, 0, 15], [0, 0, 20]], shape, slice_index=1)
    weight, _ = baselines.choose_weight([heatmap], [image], [own], [1])
    # in the slice, with scale 2: w / 2 against 1 - w
    assert weight == 0.65
