"""Rigid registration of two Volumes by mutual information, with Elastix (through itk-elastix).

The paper (section 2.1) takes Elastix's default settings. [ours] The default rigid parameters run
twice. First on voxels of about 4 mm, from two starts: the scan as it lies, and the centres of
gravity aligned; the start that ends with more mutual information wins. Then, from there, on voxels
of about 1 mm. On voxels of 0.5 mm alone, the steps are too small to turn a head by 15 degrees. With
one seed and one thread, the same two images give the same matrix.
"""

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from weakunet.data.rigid import resample
from weakunet.data.volumes import Volume, index_to_world
from weakunet.util.cli import InputError

COARSE_MM, FINE_MM = 4.0, 1.0
SEED = 0
BINS = 32


def shrink(volume, voxel_mm):
    """Average blocks of voxels to new ones of about `voxel_mm`; larger voxels stay."""
    blocks = np.maximum(1, np.round(voxel_mm / np.array(volume.spacing_mm))).astype(int)
    blocks = np.minimum(blocks, volume.array.shape)
    mean = ndimage.uniform_filter(volume.array, blocks)
    # the voxel b // 2 holds the mean of 0 to b - 1, for even b, too
    mean = mean[tuple(slice(b // 2, None, b) for b in blocks)]
    affine = volume.affine.copy()
    affine[:3, 3] = index_to_world(volume, (blocks - 1) / 2)[0]
    affine[:3, :3] *= blocks[::-1]
    return Volume(np.ascontiguousarray(mean), affine)


def mutual_information(template, scan, matrix):
    """Nats that the scan, moved by `matrix` onto the template's grid, shares with the template."""
    moved = resample(scan, template, 1, matrix, scan.array.min())
    levels = []
    for image in (template.array, moved):
        edges = np.unique(np.quantile(image, np.linspace(0, 1, BINS + 1)[1:-1]))
        levels.append(np.digitize(image, edges).ravel())
    joint = np.histogram2d(*levels, BINS)[0] / len(levels[0])
    alone = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / alone[seen])).sum())


def centre_of_gravity(volume):
    """The world point (3,) of the mean position, weighted by the intensity above the lowest."""
    weight = volume.array - volume.array.min()
    return index_to_world(volume, ndimage.center_of_mass(weight))[0]


def _itk_image(volume):
    """The Volume for ITK, in our own RAS+ mm: ITK computes the same in any frame of axes."""
    import itk

    image = itk.image_from_array(np.ascontiguousarray(volume.array, np.float32))
    sizes = np.linalg.norm(volume.affine[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(volume.affine[:3, :3] / sizes))
    return image


def run_elastix(template, scan, matrix, path):
    """Improve `matrix` (scan's world to template's) by Elastix; InputError where it gives up."""
    import itk

    parameters = itk.ParameterObject.New()
    settings = parameters.GetDefaultParameterMap("rigid")
    settings["RandomSeed"] = [str(SEED)]
    settings["WriteResultImage"] = ["false"]
    parameters.AddParameterMap(settings)
    moved = Volume(scan.array, matrix @ scan.affine)
    try:
        _, found = itk.elastix_registration_method(
            _itk_image(template),
            _itk_image(moved),
            parameter_object=parameters,
            log_to_console=False,
            number_of_threads=1,
        )
    except RuntimeError:  # its message only names a log
        raise InputError(
            f"{path}: Elastix found no registration; check that scan and template show the same "
            "part of the body, in 4 slices or more"
        ) from None
    found = found.GetParameterMap(0)
    angles = np.array(found["TransformParameters"][:3], float)
    shift = np.array(found["TransformParameters"][3:], float)
    centre = np.array(found["CenterOfRotationPoint"], float)
    # Elastix goes from the template to the scan, p -> R (p - centre) + centre + shift, and turns
    # about y, then x, then z
    step = np.eye(4)
    step[:3, :3] = Rotation.from_euler("yxz", angles[[1, 0, 2]]).as_matrix()
    step[:3, 3] = centre + shift - step[:3, :3] @ centre
    return np.linalg.inv(step) @ matrix


def register(template, scan, path):
    """Find the rigid matrix (4, 4) from the world of the Volume `scan` to the template's.

    Returns the matrix and the mutual information (nats). Raises InputError naming `path` where the
    scan is constant or Elastix gives up.
    """
    if scan.array.min() == scan.array.max():
        raise InputError(f"{path}: every voxel is the same; check that this is the scan")
    coarse = [shrink(volume, COARSE_MM) for volume in (template, scan)]
    fine = [shrink(volume, FINE_MM) for volume in (template, scan)]
    onto = np.eye(4)
    onto[:3, 3] = centre_of_gravity(coarse[0]) - centre_of_gravity(coarse[1])
    tries, failure = [], None
    for start in (np.eye(4), onto):
        try:
            tries.append(run_elastix(*coarse, start, path))
        except InputError as error:  # from where the scan lies, the two may not even meet
            failure = error
    if not tries:
        raise failure
    best = max(tries, key=lambda matrix: mutual_information(*coarse, matrix))
    matrix = run_elastix(*fine, best, path)
    return matrix, mutual_information(*coarse, matrix)
