def receptive_field(layers):
    field, jump = 1, 1
    for k, stride in layers:
        field += (k - 1) * jump
        jump *= stride
    return field


def map_shapes(channels, shape):
    shapes = []
    for level, maps in enumerate(channels):
        if level > 0:
            if any(size % 2 for size in shape):
                raise ValueError(f"{shape} cannot be halved; pad it to even sizes")
            shape = tuple(size // 2 for size in shape)
        shapes.append((maps, *shape))
    return shapes


def n_parameters(channels):
    total, c_in = 0, 1
    for c_out in channels:  # encoder
        total += 27 * c_in * c_out + c_out
        c_in = c_out
    for level in range(len(channels) - 1):  # decoder
        c_in, c_out = channels[level] + channels[level + 1], channels[level]
        total += 27 * c_in * c_out + c_out
    return total + channels[0] + 1
