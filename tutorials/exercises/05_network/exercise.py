"""Exercise 5: the network by its numbers. About 40 minutes."""


def receptive_field(layers):
    """How many input voxels, along one axis, can change ONE output voxel of the last layer.

    layers: (k, stride) from the input on: a 3x3x3 convolution is (3, 1), 2x2x2 pooling (2, 2).
    Hint: keep two numbers, `field` = 1 and `jump` = 1, the distance in input voxels between two
    neighbours of the current layer. A layer reads k neighbours: field += (k - 1) * jump. AFTER it
    neighbours are `stride` times as far apart: jump *= stride.
    """
    raise NotImplementedError("receptive_field is yours to write")


def map_shapes(channels, shape):
    """Shapes (C, D, H, W) of the encoder's feature maps, level by level.

    channels: maps per level, as (8, 16, 32); shape: the scan's (D, H, W). Between two levels
    pooling halves D, H and W. Raises ValueError if a size to be halved is odd.
    """
    raise NotImplementedError("map_shapes is yours to write")


def n_parameters(channels):
    """How many numbers the network learns, with one 3x3x3 convolution per level.

    Encoder: 1 -> channels[0] -> channels[1] -> ... (pooling learns nothing). Decoder, from the
    bottom up: the encoder's maps of this level and the upsampled maps of the level below are
    concatenated, and a convolution makes channels[level] maps. Last layer: a weight per map and
    one bias. Hint: a convolution has 27 C_in C_out weights and C_out biases.
    """
    raise NotImplementedError("n_parameters is yours to write")
