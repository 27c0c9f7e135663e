"""The fully supervised upper bound: labels, loss, gradients, training and its threshold."""

import numpy as np
import pytest
from helpers import rows

from weakunet.compare import voxelwise
from weakunet.data.cohort import LoadedScan
from weakunet.data.volumes import Volume
from weakunet.layers.gradcheck import check_direction
from weakunet.model import WeakUNet
from weakunet.training.augment import draw_transform, warp
from weakunet.training.batches import place_slices
from weakunet.training.checkpoint import load_model
from weakunet.training.loop import train
from weakunet.training.settings import Settings
from weakunet.util.cli import InputError

PAPER_MM = (0.8, 0.49, 0.49)


def volume(array, spacing_zyx=PAPER_MM):
    return Volume(array, np.diag([*spacing_zyx[::-1], 1.0]))


def simulated(n, seed, shape=(6, 8, 8)):
    """Scans with one to three bright voxels as lesions."""
    rng, scans = np.random.default_rng(seed), []
    for i in range(n):
        array = rng.uniform(0.2, 0.4, shape).astype(np.float32)
        centres = rng.integers(0, shape, (rng.integers(1, 4), 3))
        array[tuple(centres.T)] = 1
        scans.append(LoadedScan(f"s{i}", volume(array), len(centres), centres.astype(float)))
    return scans


def network(dtype=np.float32):
    return WeakUNet((4, 4), rng=np.random.default_rng(4), dtype=dtype)


# -- labels ----------------------------------------------------------------------------------------


def test_labels_at_the_papers_spacing_are_eleven_voxels():
    labels = voxelwise.draw_labels((5, 7, 7), np.array([[2.0, 3, 3]]), PAPER_MM)
    expected = np.zeros((5, 7, 7))
    expected[2, 2:5, 2:5] = 1  # 0.49 and 0.69 mm away; the next, 0.98 mm
    expected[1, 3, 3] = expected[3, 3, 3] = 1  # 0.8 mm; beside them, 0.94 mm
    np.testing.assert_array_equal(labels, expected)


def test_labels_are_the_nearest_voxel_where_voxels_are_large():
    centres = np.array([[1.4, 0.5, 2.0]])
    labels = voxelwise.draw_labels((3, 3, 3), centres, (5, 5, 5))
    assert np.argwhere(labels).tolist() == [[1, 1, 2]]


@pytest.mark.parametrize(
    "centres, voxels", [([[0, 0, 0]], 5), ([[-9, 0, 0], [2, 30, 3]], 0), ([], 0)]
)
def test_labels_are_cut_at_the_edge_and_empty_for_centres_outside(centres, voxels):
    centres = np.array(centres, float).reshape(-1, 3)
    assert voxelwise.draw_labels((5, 7, 7), centres, PAPER_MM).sum() == voxels


@pytest.mark.parametrize("seed", range(4))
def test_labels_move_as_the_scan_does(seed):
    """Drawing the labels around the moved centres gives the moved labels."""
    scan = simulated(1, 3, (9, 12, 11))[0]
    scan.centres_zyx = np.array([[4.3, 5.6, 5.1], [5.0, 7.0, 3.0]])  # stays inside
    matrix = draw_transform(np.random.default_rng(seed), (9, 12, 11))
    moved = warp(scan.volume.array, matrix)[None, None]
    labels = voxelwise.label_volumes([scan], (9, 12, 11)).astype(np.float32)
    labels, counts = voxelwise._targets(moved, warp(labels, matrix[None]))
    linear, offset = matrix[:, :3], matrix[:, 3]
    centres = (scan.centres_zyx - offset) @ np.linalg.inv(linear).T
    expected = voxelwise.draw_labels((9, 12, 11), centres, PAPER_MM)
    assert expected.sum() > 15
    np.testing.assert_array_equal(labels[0, 0], expected)
    np.testing.assert_array_equal(counts, moved > 0)


def test_only_the_slice_that_was_labelled_counts():
    scan = simulated(1, 3)[0]
    scan.slice_index, scan.centres_zyx = 1, np.array([[1.0, 4, 4], [2, 1, 1]])
    shifted = np.hstack([np.eye(3), [[0], [0], [1]]])  # x -> x - 1
    moved = warp(scan.volume.array, shifted)[None, None]
    labels = voxelwise.label_volumes([scan], (8, 8, 8)).astype(np.float32)[:, :6]
    labels, counts = voxelwise._targets(moved, warp(labels, shifted[None]))
    assert counts[0, 0, 1, :, :7].all() and counts.sum() == 8 * 7
    assert labels[0, 0, 1, 4, 3] == 1 and labels.min() == 0


def test_labels_stay_on_their_lesions_where_training_places_the_slice_that_was_counted():
    scan = simulated(1, 3)[0]
    scan.slice_index, scan.centres_zyx = 3, np.array([[3.0, 4, 4]])
    scan.volume.array[3, 4, 4] = 2
    (placed,) = place_slices(network(), [scan])
    assert placed.slice_index != 3  # moved, else this test says nothing
    labels = voxelwise.label_volumes([placed], placed.volume.array.shape)[0]
    assert labels[placed.slice_index].max() == 1
    assert labels[placed.volume.array == 2] == 1


# -- loss and gradients ----------------------------------------------------------------------------


def test_loss_by_hand():
    logits, labels = np.array([0.0, 0.0, 3.0, 9.0]), np.array([1.0, 0.0, 0.0, 1.0])
    counts = np.array([True, True, True, False])
    loss, dlogits = voxelwise.voxel_loss(logits, labels, counts)
    c = voxelwise.POSITIVE_WEIGHT
    assert loss == pytest.approx((c * np.log(2) + np.log(2) + np.log(1 + np.exp(3))) / 3)
    sigmoid = 1 / (1 + np.exp(-3))
    np.testing.assert_allclose(dlogits, [-0.5 * c / 3, 0.5 / 3, sigmoid / 3, 0], rtol=1e-12)


def test_loss_of_huge_logits_is_finite():
    logits = np.array([1e4, -1e4], np.float32)
    loss, dlogits = voxelwise.voxel_loss(logits, np.array([0, 1], np.float32), np.ones(2, bool))
    assert loss == pytest.approx((1e4 + voxelwise.POSITIVE_WEIGHT * 1e4) / 2)
    np.testing.assert_allclose(dlogits, [0.5, -voxelwise.POSITIVE_WEIGHT / 2])


def batch(rng):
    scans, labels = rng.random((2, 1, 4, 6, 4)), rng.random((2, 1, 4, 6, 4)) < 0.2
    return scans, labels.astype(float), scans > 0.3


def test_gradients_of_the_network_along_a_random_direction():
    rng, model = np.random.default_rng(0), network(np.float64)
    arrays = batch(rng)
    voxelwise.forward_backward(model, *arrays)
    grads = model.grads

    def loss():
        return voxelwise.forward_backward(model, *arrays)

    assert check_direction(loss, model.params, grads, rng) < 1e-6
    head = {name: model.params[name] for name in ("linear.w", "linear.b")}
    assert check_direction(loss, head, grads, rng) < 1e-6


def test_gradients_on_cuda_are_those_of_numpy(cuda_on_cpu, monkeypatch):
    model, arrays = network(np.float64), batch(np.random.default_rng(0))
    loss = voxelwise.forward_backward(model, *arrays)
    grads = model.grads
    assert any("conv" in file for file, _ in cuda_on_cpu.launched)
    monkeypatch.undo()
    assert loss == pytest.approx(voxelwise.forward_backward(model, *arrays), rel=1e-12)
    for name, grad in model.grads.items():
        atol = 1e-10 * abs(grad).max()
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=atol)


# -- training --------------------------------------------------------------------------------------


def learn(settings, scans, out, model=None):
    run = voxelwise.VoxelwiseRun(model or network(), settings, out)
    return train(run, scans, lambda: False)


def test_training_learns(tmp_path, capsys):
    scans = {"train": simulated(12, 1), "val": simulated(4, 2)}
    assert learn(Settings(epochs=4, seed=3, eps=1e-4, batch=2), scans, tmp_path) is False
    assert "epoch 4/4" in capsys.readouterr().out
    log = rows(tmp_path / "log.csv")
    assert list(log[0]) == list(voxelwise.VoxelwiseRun.columns) and len(log) == 4
    losses = [float(row["val_loss"]) for row in log]
    assert losses[-1] < 0.9 * losses[0]
    assert load_model(tmp_path / "best.npz").shape == (6, 8, 8)


def test_training_starts_at_the_weighted_log_odds(tmp_path):
    scans = {"train": simulated(3, 1), "val": simulated(1, 2)}
    model = network()
    learn(Settings(epochs=1, lr=1e-20), scans, tmp_path, model=model)
    lesion = sum(
        voxelwise.draw_labels((6, 8, 8), scan.centres_zyx, PAPER_MM).sum()
        for scan in scans["train"]
    )
    odds = voxelwise.POSITIVE_WEIGHT * lesion / (3 * 6 * 8 * 8 - lesion)
    assert model.params["linear.b"][0] == pytest.approx(np.log(odds), rel=1e-6)


def test_training_that_diverges_says_so_and_needs_centres(tmp_path):
    scans, model = {"train": simulated(2, 1), "val": simulated(1, 2)}, network()
    model.params["encoder0.conv0.b"][:] = np.nan
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match="diverged in epoch 1"):
        learn(Settings(epochs=1), scans, tmp_path, model=model)
    scans["val"][0].centres_zyx = None
    with pytest.raises(InputError, match="s0: no lesion centres"):
        learn(Settings(), scans, tmp_path)


# -- the threshold ---------------------------------------------------------------------------------


def test_threshold_is_the_highest_that_gives_both_scans_their_count():
    maps = np.zeros((2, 1, 1, 40))
    maps[0, 0, 0, [5, 15, 25]] = 5, 3, 1
    maps[1, 0, 0, [5, 15, 25]] = 4, 2, 0.5
    maps[1, 0, 0, 6] = 3.5  # any level in (3, 4] gives one component each
    maps += np.linspace(0, 0.1, 40)  # else all but the peaks are the minimum
    level = voxelwise.components_threshold(list(maps), [1, 1])
    assert level == maps[1, 0, 0, 5]
    assert [voxelwise.count_components(own, level) for own in maps] == [1, 1]


def test_threshold_has_the_least_error_of_all_levels_tried():
    rng = np.random.default_rng(2)
    maps = [rng.standard_normal((4, 9, 9)) for _ in range(3)]
    counts = [4, 7, 5]

    def error(level):
        found = [voxelwise.count_components(own, level) for own in maps]
        return sum((n - count) ** 2 for n, count in zip(found, counts, strict=True))

    values = np.sort(np.concatenate([own.reshape(-1) for own in maps]))[::-1]
    best = min(error(level) for level in values[: len(values) // 10])
    assert error(voxelwise.components_threshold(maps, counts)) == best


def test_threshold_looks_below_many_voxels_of_one_component():
    blob, flat = np.zeros((1, 60, 60)), np.random.default_rng(0).random((1, 250, 250))
    blob[0, :50] = 20 + np.arange(3000).reshape(50, 60) / 3000  # one component at every level
    for x in range(5, 60, 10):
        blob[0, 53:58, x : x + 5] = 10
    level = voxelwise.components_threshold([blob, flat], [7, 0])
    assert level == 10


def test_threshold_of_constant_maps_lets_nothing_pass():
    level = voxelwise.components_threshold([np.ones((2, 2, 2))], [1])
    assert level == np.inf
    assert voxelwise.count_components(np.ones((2, 2, 2)), level) == 0
