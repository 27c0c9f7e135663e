"""Reading and writing images: nibabel, which never saw our axis order, says what is right."""

import gzip
import itertools

import nibabel
import numpy as np
import pytest
from helpers import moved
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from weakunet.data import volumes
from weakunet.data.headers import MAX_HEADER
from weakunet.data.volumes import (
    Volume,
    index_to_file,
    index_to_world,
    read_labels,
    read_volume,
    require_same_grid,
    world_to_index,
    write_volume,
)
from weakunet.util.cli import InputError

CODES = [
    tuple(pair[flip] for pair, flip in zip(axes, flips, strict=True))
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]


OBLIQUE = moved((10, 0, 5), (-12.5, 30.25, 7.0), (0.49, 0.49, 0.8))
XYZ = np.random.default_rng(0).integers(-500, 3000, (7, 6, 5)).astype(np.int16)


def reoriented(xyz, affine, codes):
    """The same image stored along other axes: (array, affine)."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return apply_orientation(xyz, change), affine @ inv_ornt_aff(change, xyz.shape)


@pytest.mark.parametrize("codes", CODES, ids="".join)
def test_any_of_48_orientations_reads_the_same_and_writes_back(tmp_path, codes):
    xyz, affine = XYZ, OBLIQUE
    stored, stored_affine = reoriented(xyz, affine, codes)
    assert nibabel.aff2axcodes(stored_affine) == codes
    nibabel.save(nibabel.Nifti1Image(stored, stored_affine), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert np.array_equal(volume.array, xyz.transpose(2, 1, 0))
    assert volume.array.dtype == np.float32 and volume.array.flags.c_contiguous
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_allclose(volume.spacing_mm, (0.8, 0.49, 0.49), rtol=1e-6)
    # a voxel known by its value: its indices in the file, and its place in the world
    zyx = np.argwhere(volume.array == volume.array.max())
    ijk = index_to_file(volume, zyx)
    assert np.array_equal(ijk, np.argwhere(stored == stored.max()))
    mm = index_to_world(volume, zyx)
    np.testing.assert_allclose(mm, apply_affine(stored_affine, ijk), atol=1e-4)
    np.testing.assert_allclose(world_to_index(volume, mm), zyx, atol=1e-9)
    write_volume(tmp_path / "b.nii.gz", volume.array, volume)
    back = nibabel.load(tmp_path / "b.nii.gz")
    assert np.array_equal(back.get_fdata(), stored) and back.get_data_dtype() == np.float32
    np.testing.assert_allclose(back.affine, stored_affine, atol=1e-6)
    np.testing.assert_allclose(back.get_qform(), stored_affine, atol=1e-4)


@pytest.mark.parametrize("kind", ["big.nii", "a.nii.gz", "a.mgz", "a.mgh", "scaled.nii", "a.NII"])
def test_other_formats_and_byte_orders_read_the_same(tmp_path, kind):
    xyz, affine = reoriented(XYZ, OBLIQUE, ("L", "I", "A"))
    path = tmp_path / kind
    if "mg" in kind:
        nibabel.save(nibabel.MGHImage(xyz.astype(np.float32), affine), path)
    elif kind == "big.nii":
        header = nibabel.Nifti1Header(endianness=">")
        header.set_data_dtype(">i2")
        nibabel.save(nibabel.Nifti1Image(xyz, affine, header), path)
        assert path.read_bytes()[:4] == (348).to_bytes(4, "big")
    elif kind == "scaled.nii":  # value = 2 stored + 100
        image = nibabel.Nifti1Image((xyz - 100) // 2, affine)
        image.header.set_slope_inter(2, 100)
        nibabel.save(image, path)
    else:
        path.write_bytes(nibabel.Nifti1Image(xyz, affine).to_bytes())
        if kind.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
    volume = read_volume(path)
    tolerance = 1 if kind == "scaled.nii" else 0
    np.testing.assert_allclose(volume.array, XYZ.transpose(2, 1, 0), rtol=0, atol=tolerance)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)


def test_labels_are_written_as_integers_and_the_same_bytes_twice(tmp_path):
    xyz, affine = reoriented(XYZ, OBLIQUE, ("P", "S", "L"))
    nibabel.save(nibabel.Nifti1Image(xyz, affine), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    labels = (volume.array > 1000).astype(np.int64) * 70000
    write_volume(tmp_path / "b.nii.gz", labels, volume)
    write_volume(tmp_path / "c.nii.gz", labels, volume)
    back = nibabel.load(tmp_path / "b.nii.gz")
    assert back.get_data_dtype() == np.int32 and set(np.unique(back.dataobj)) == {0, 70000}
    assert np.array_equal(np.asarray(back.dataobj) > 0, xyz > 1000)
    content = (tmp_path / "b.nii.gz").read_bytes()
    assert content == (tmp_path / "c.nii.gz").read_bytes()
    assert content[4:8] == bytes(4)  # gzip's time of writing
    with pytest.raises(ValueError, match="grid"):
        write_volume(tmp_path / "d.nii.gz", labels[1:], volume)


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 5, 1)])
def test_flat_and_trailing_axes_are_kept_when_written_back(tmp_path, shape):
    stored = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([-1, 1, 2, 1])), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array.shape == (*shape, 1)[2::-1]
    write_volume(tmp_path / "b.nii", volume.array, volume)
    assert np.array_equal(nibabel.load(tmp_path / "b.nii").get_fdata(), stored)


def test_simulated_volume_is_its_own_file_grid(tmp_path):
    affine = OBLIQUE
    volume = Volume(np.zeros((2, 3, 4), np.float32), affine)
    assert np.array_equal(index_to_file(volume, [[1, 2, 3]]), [[3, 2, 1]])
    assert index_to_world(volume, np.empty((0, 3))).shape == (0, 3)
    assert volume.voxel_mm3 == pytest.approx(0.49 * 0.49 * 0.8)
    volume.array[1, 2, 3] = 5
    write_volume(tmp_path / "a.nii", volume.array, volume)
    assert nibabel.load(tmp_path / "a.nii").get_fdata()[3, 2, 1] == 5


def nifti(array, **fields):
    """A file's bytes; `fields` overwrites fields of its header."""
    content = nibabel.Nifti1Image(array, np.eye(4)).to_bytes()
    header = nibabel.Nifti1Header(content[:348])
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[348:]


CUBE = np.ones((2, 2, 2), np.float32)


def with_shape(shape):
    """An image of 2 x 2 x 2 voxels whose header declares `shape`."""
    content = bytearray(nifti(CUBE))
    content[40:56] = np.array([len(shape), *shape] + [1] * (7 - len(shape)), "<i2").tobytes()
    return bytes(content)


GOOD_XYZ = np.random.default_rng(0).random((9, 8, 7)).astype(np.float32)
GOOD = nifti(GOOD_XYZ)
PACKED = gzip.compress(GOOD)
NAN = np.array([[[1, np.nan], [2, 3]]], np.float32)
NO_RAS = bytearray(nibabel.MGHImage(GOOD_XYZ, np.eye(4)).to_bytes())
NO_RAS[28:30] = 0, 0  # goodRASFlag
BAD_FILES = {
    "empty.nii": (b"", "empty"),
    "text.nii.gz": (b"hello", "not a readable image"),
    "text.mgz": (gzip.compress(b"hello"), "not a readable image"),
    "png.nii": (b"\x89PNG" * 200, "not a readable image"),
    "a.png": (b"\x89PNG", "convert it"),
    "truncated.nii": (GOOD[:-100], "truncated"),
    "truncated.nii.gz": (PACKED[:-200], "truncated"),
    "cut-checksum.nii.gz": (PACKED[:-4], "truncated or damaged"),
    "flipped.nii.gz": (PACKED[:900] + b"\0" * 40 + PACKED[940:], "damaged"),
    "4d.nii": (nifti(np.ones((2, 2, 2, 3), np.float32)), "4-D"),
    "line.nii": (nifti(np.ones(4, np.float32)), "1-D"),
    "huge.nii.gz": (gzip.compress(with_shape((32767, 32767, 32767))), "header is damaged"),
    "large.nii.gz": (gzip.compress(with_shape((700, 700, 700))), "truncated"),
    "none.nii": (with_shape((0, 4, 4)), "damaged|truncated"),
    "nan.nii": (nifti(NAN), "NaN"),
    "inf.nii": (nifti(np.where(np.isnan(NAN), np.inf, NAN)), "infinite"),
    "complex.nii": (nifti(np.ones((2, 2, 2), np.complex64)), "grey"),
    "colour.nii": (nifti(np.zeros((2, 2, 2), [(c, "u1") for c in "RGB"])), "grey"),
    "nowhere.nii": (nifti(CUBE, sform_code=0), "place in the world is unknown"),
    "nowhere.mgh": (NO_RAS, "place in the world is unknown"),
    "zero.nii": (nifti(CUBE, srow_x=0, srow_y=0, srow_z=0), "affine"),
    "flat.nii": (nifti(CUBE, srow_x=(0, 1, 0, 0)), "affine"),
    "no-intercept.nii": (nifti(NAN, scl_slope=1, scl_inter=np.nan), "scl_inter nan"),
    "nan-affine.nii": (nifti(CUBE, srow_x=np.nan), "affine"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_in_one_line_that_names_it(tmp_path, name):
    content, problem = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_volume(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name)) and "; " in message and "\n" not in message


def test_lack_of_memory_is_not_called_damage(tmp_path, monkeypatch):
    def allocate(*arguments):
        raise MemoryError

    (tmp_path / "a.nii").write_bytes(GOOD)
    monkeypatch.setattr(volumes, "_read_voxels", allocate)
    with pytest.raises(InputError, match="a.nii: not enough memory"):
        read_volume(tmp_path / "a.nii")


def test_units_of_the_header_are_honoured(tmp_path):
    xyz, affine = XYZ, OBLIQUE
    for form in ("sform", "qform"):
        for unit, scale in (("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)):
            own = affine.copy()
            own[:3] *= scale
            image = nibabel.Nifti1Image(xyz, own)
            image.set_sform(own, 1 if form == "sform" else 0)
            image.set_qform(own, 1 if form == "qform" else 0)
            image.header["xyzt_units"] = nibabel.nifti1.unit_codes[unit] + 8  # and seconds
            nibabel.save(image, tmp_path / "a.nii")
            volume = read_volume(tmp_path / "a.nii")
            np.testing.assert_allclose(volume.affine, affine, rtol=1e-5, atol=1e-5)
            write_volume(tmp_path / "b.nii", volume.array, volume)
            back = nibabel.load(tmp_path / "b.nii")
            np.testing.assert_allclose(back.affine, affine, rtol=1e-5, atol=1e-5)
            assert back.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("magic", [b"n+1", b"ni1"])
def test_voxels_never_begin_inside_the_header(tmp_path, magic):
    """An offset of 0, as nibabel leaves it in a header that it has read."""
    (tmp_path / "a.nii").write_bytes(nifti(GOOD_XYZ, vox_offset=0, magic=magic))
    assert np.array_equal(read_volume(tmp_path / "a.nii").array, GOOD_XYZ.transpose(2, 1, 0))
    (tmp_path / "a.nii").write_bytes(nifti(GOOD_XYZ, vox_offset=0, magic=magic)[:-4])
    with pytest.raises(InputError, match="truncated"):
        read_volume(tmp_path / "a.nii")


def test_quaternion_that_rounding_made_too_long_is_normalised(tmp_path):
    for name, quaternion in (("a.nii", 1), ("b.nii", np.sqrt(1.000002))):  # half a turn about z
        fields = {"quatern_d": quaternion, "qform_code": 1, "sform_code": 0, "pixdim": [1] * 8}
        (tmp_path / name).write_bytes(nifti(GOOD_XYZ, **fields))
    expected = nibabel.load(tmp_path / "a.nii").affine
    assert tuple(np.diag(expected)) == (-1, -1, 1, 1)
    np.testing.assert_allclose(read_volume(tmp_path / "b.nii").native.affine, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_header_extension_is_read_up_to_the_limit_that_the_refusal_states(tmp_path, name):
    def write(size):
        image = nibabel.Nifti1Image(GOOD_XYZ, np.eye(4))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * size))
        nibabel.save(image, tmp_path / name)

    write(1_500_000)
    assert np.array_equal(read_volume(tmp_path / name).array, GOOD_XYZ.transpose(2, 1, 0))
    write(MAX_HEADER)
    with pytest.raises(InputError, match=f"before the voxels, at most {MAX_HEADER} are read"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("kind", [np.uint32, np.int64, np.float64])
def test_labels_above_2_to_24_stay_apart(tmp_path, kind):
    labels = np.full((3, 2, 2), 16777216, kind)
    labels[1:] += 1
    image = nibabel.Nifti1Image(labels, np.eye(4), dtype=kind)
    nibabel.save(image, tmp_path / "a.nii")
    read = read_labels(tmp_path / "a.nii").array
    assert read.dtype.kind in "iu" and np.array_equal(read, labels.transpose(2, 1, 0))
    nibabel.save(nibabel.Nifti1Image(np.full((2, 2, 2), 0.5), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match="a.nii: voxels that are not whole numbers"):
        read_labels(tmp_path / "a.nii")


def test_missing_file_and_folder_are_refused(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    for name in ("missing.nii.gz", "folder.nii"):
        with pytest.raises(InputError, match="no such file"):
            read_volume(tmp_path / name)


def test_same_grid_tolerates_rounding_and_storage_order_only(tmp_path):
    xyz, affine = XYZ, OBLIQUE
    a = Volume(xyz.transpose(2, 1, 0), affine)
    stored, stored_affine = reoriented(xyz, affine, ("L", "P", "I"))
    nibabel.save(nibabel.Nifti1Image(stored, stored_affine), tmp_path / "b.nii")
    require_same_grid(a, "a", read_volume(tmp_path / "b.nii"), "b")
    moved = affine.copy()
    moved[0, 3] += 0.02
    require_same_grid(a, "a", Volume(a.array, moved), "b")
    moved[0, 3] += 0.02  # 0.04 mm of 0.49 is more than 5 %
    with pytest.raises(InputError, match=r"b: not on the grid of a.*-12\.46.*-12\.5.*resample"):
        require_same_grid(a, "a", Volume(a.array, moved), "b")
    with pytest.raises(InputError, match=r"\(7, 6, 4\) against \(7, 6, 5\)"):
        require_same_grid(a, "a", Volume(a.array[1:], affine), "b")
