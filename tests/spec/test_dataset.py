"""Samples as a network takes them."""

from __future__ import annotations

import numpy as np

from curvverify.spec.dataset import checked_samples


def test_images_with_channels_last_are_turned_for_networks_with_channels_first() -> None:
    x = np.random.default_rng(0).random((4, 5, 6, 3))
    y = np.zeros(4, int)
    for shape in ((3, 5, 6), (1, 3, 5, 6)):  # a network may name its batch of one
        turned = checked_samples(x, y, 90, 2, shape=shape).x.reshape(4, 3, 5, 6)
        assert np.array_equal(turned.numpy(), x.transpose(0, 3, 1, 2))
        single = checked_samples(x[0], y[:1], 90, 2, shape=shape).x.reshape(3, 5, 6)
        assert np.array_equal(single.numpy(), x[0].transpose(2, 0, 1))
    for shape in ((5, 6, 3), (1, 5, 6, 3), (90,), ()):
        kept = checked_samples(x, y, 90, 2, shape=shape).x
        assert np.array_equal(kept.numpy(), x.reshape(4, 90))
