"""The network's layers: one file each, a pure forward/backward pair first, then a small class."""
