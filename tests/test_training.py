"""Learning itself: weights to start from, the padding of scans, a warning."""

import numpy as np
import pytest

from weakunet.data.cohort import LoadedScan
from weakunet.data.phantom import simulate_cohort
from weakunet.data.volumes import Volume
from weakunet.training import loop, start
from weakunet.training.batches import common_shape, common_spacing, pad_together
from weakunet.training.checkpoint import load_model
from weakunet.training.run import Run, warn_if_nothing_learned
from weakunet.training.settings import Settings
from weakunet.util import resume
from weakunet.util.cli import InputError


def scan(i, shape=(4, 4, 4), spacing_mm=(1, 1, 1)):
    array = np.random.default_rng(i).uniform(0.5, 1, shape).astype("f4")
    return LoadedScan(f"s{i}", Volume(array, np.diag([*spacing_mm[::-1], 1])), i)


# -- scans, padded and moved -----------------------------------------------------------------------


def test_scans_of_different_voxel_sizes_are_refused():
    sizes = ((0.8, 0.5, 0.5), (0.81, 0.5, 0.49), (0.8, 0.5, 0.55))
    scans = [scan(i, spacing_mm=mm) for i, mm in enumerate(sizes)]
    assert common_spacing(scans[:2]) == pytest.approx(sizes[0])
    with pytest.raises(InputError, match="s2: .* --spacing-mm 0.8 0.5 0.5"):
        common_spacing(scans)


def test_volumes_are_padded_at_the_end_to_sizes_that_divide():
    volumes = [np.ones((3, 4, 5)), np.full((2, 6, 1), 2.0)]
    assert common_shape(volumes, 4) == (4, 8, 8)
    stacked = pad_together(volumes, (4, 8, 8))
    assert stacked.shape == (2, 4, 8, 8)
    assert stacked[0].sum() == 60 and stacked[0, :3, :4, :5].all()
    assert stacked[1].sum() == 24 and (stacked[1, :2, :6, :1] == 2).all()


def test_scans_of_one_slice_are_moved_within_it_only(monkeypatch, tmp_path):
    scans, seen, warp = [scan(i, (1, 8, 8)) for i in range(4)], [], loop.warp

    def keep(volumes, matrices):
        moved = warp(volumes, matrices)
        seen.extend(moved)
        return moved

    monkeypatch.setattr(loop, "warp", keep)
    settings = Settings(epochs=4, batch=2, channels=(2, 3, 4), block=2)
    run = Run(start.new_network(settings), settings, tmp_path)
    loop.train(run, {"train": scans, "val": scans})
    assert len(seen) == 16
    for volume in seen:  # padded to four slices; at most two lines and columns are shifted out
        assert volume.shape == (4, 8, 8) and not volume[[0, 1, 3]].any()
        assert np.count_nonzero(volume[2]) >= 36
    assert any(not np.array_equal(volume[2], seen[0][2]) for volume in seen)


def test_scans_turn_in_millimetres_until_the_learning_rate_falls(monkeypatch, tmp_path):
    scans, seen = [scan(i, (4, 8, 8), (2, 1, 1)) for i in range(4)], []
    monkeypatch.setattr(loop, "warp", lambda volumes, each: seen.extend(each) or volumes)
    settings = Settings(epochs=4, batch=2, channels=(2, 3), block=2)
    run = Run(start.new_network(settings), settings, tmp_path)
    loop.train(run, {"train": scans, "val": scans})
    mm = np.diag([2, 1, 1])
    for i, turn in enumerate(mm @ matrix[:, :3] @ np.linalg.inv(mm) for matrix in seen):
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.array_equal(abs(turn), np.eye(3)) == (i >= 12)


# -- the first weights -----------------------------------------------------------------------------


def test_large_volumes_start_from_weights_that_learned_on_small_ones(tmp_path, capsys, monkeypatch):
    scans = simulate_cohort("tiny", {"train": 2}, 0)["train"]

    def starts(**settings):
        where = tmp_path, "cpu", "fp32", lambda: False
        return start.starting_weights(Settings(**settings), scans, *where)

    assert starts() is None and starts(start_from="here.npz").name == "here.npz"
    monkeypatch.setattr(start, "LARGE_VOX", scans[0].volume.array.size)
    assert starts() == start.SHIPPED and "--start-from none" in capsys.readouterr().out
    run = Run(start.new_network(Settings()), Settings(), tmp_path)
    run.start_from(start.SHIPPED)
    assert run.learned_elsewhere and run.model.global_pool.blocks > 1
    assert starts(start_from="none") is starts(gaussian_head=True) is None


def test_other_networks_learn_on_small_scans_first_and_once(tmp_path, monkeypatch):
    small = simulate_cohort("tiny", {"train": 4, "val": 2}, 0)
    monkeypatch.setattr(start, "LARGE_VOX", 1)
    loaded = []
    monkeypatch.setattr(start, "load_scans", lambda *asked: loaded.append(asked) or small)
    settings = Settings(channels=(2, 3), epochs=5)
    wanted = settings, small["train"], tmp_path, "cpu", "fp32"
    assert start.starting_weights(*wanted, lambda: True) is None  # interrupted
    path = start.starting_weights(*wanted, lambda: False)
    assert path == tmp_path / "start-2-3-x1-lmax8" / "best.npz" and len(loaded) == 2
    assert load_model(path).settings["channels"] == [2, 3]
    assert start.starting_weights(*wanted, lambda: False) == path and len(loaded) == 2
    monkeypatch.setattr(resume, "VERSION", 0)  # what another program learned is not learned further
    assert start.starting_weights(*wanted, lambda: True) is None and not path.exists()


# -- counts that are not learned ------------------------------------------------------------------


EQUAL, SPREAD = (4.0, 4.0, 4.1), (0.5, 3.5, 9.5)


@pytest.mark.parametrize(
    "predicted, train, settings, remedy",
    [
        (SPREAD, (1, 2), {}, None),
        (EQUAL, (1, 2), {}, "--epochs 48"),
        ((90.0, 30.0, 0.0), (1, 2), {}, "--epochs 48"),  # spread, but wrong
        (EQUAL, (1, 2), {"pool": "max"}, "--pool lmax"),
        (EQUAL, (1, 2), {"start_from": "none"}, "--start-from auto"),
        ((4.0,), (1, 2), {}, None),  # one validation scan tells nothing
        ((4.0,), (2, 2), {}, "every training scan has the count 2"),
    ],
)
def test_counts_not_learned_are_called_out_with_a_remedy(
    capsys, predicted, train, settings, remedy
):
    counts = {"train": np.array(train, float), "val": np.array([0.0, 3.0, 9.0])[: len(predicted)]}
    warn_if_nothing_learned(Settings(**settings), np.array(predicted), counts)
    out = capsys.readouterr().out
    assert (remedy in out and out.count("\n") == 1) if remedy else out == ""
