"""The floor under an epoch: what its arithmetic alone costs in TensorFlow's own kernels on one thread.

The floor program gathers each batch, multiplies the matrices that forward, backward and validation multiply,
and makes one pass of the fused Adam over all parameters as one vector. It has no biases, activations, loss,
metrics or penalties, and nobody waits for Keras.
"""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf

VALIDATION_BATCH = 1000


class Floor:
    """The floor program of a network `widths` over `x_train` and `x_val`, images `(n, features) float32`."""

    def __init__(self, x_train: Any, x_val: Any, widths: tuple[int, ...], batch_size: int) -> None:
        self._x_train, self._x_val = tf.constant(x_train), tf.constant(x_val)
        self._batch_size = batch_size
        sizes = list(zip((x_train.shape[1], *widths), widths, strict=False))
        self._kernels = [
            tf.Variable(tf.random.stateless_normal(size, (1, place), stddev=0.05))
            for place, size in enumerate(sizes)
        ]
        count = sum(rows * columns + columns for rows, columns in sizes)
        self._gradient = tf.random.stateless_normal((count,), (2, 0), stddev=1e-3)
        self._flat, self._first, self._second = (tf.Variable(tf.zeros(count)) for _ in range(3))
        self._run = tf.function(self._epoch)
        self._run(self._order(0))

    def seconds(self, epoch: int) -> float:
        """Run it once, over the images in an order of its own."""
        order = self._order(epoch)
        begun = time.perf_counter()
        float(self._run(order))
        return time.perf_counter() - begun

    def _order(self, epoch: int) -> Any:
        return tf.random.experimental.stateless_shuffle(tf.range(self._x_train.shape[0]), seed=(3, epoch))

    def _epoch(self, order: Any) -> Any:
        size = self._batch_size

        def step(place: Any, seen: Any) -> tuple[Any, Any]:
            images = tf.gather(self._x_train, tf.slice(order, [place * size], [size]))
            self._adam()
            return place + 1, seen + self._both_ways(images)

        def look(place: Any, seen: Any) -> tuple[Any, Any]:
            images = self._x_val[place * VALIDATION_BATCH : (place + 1) * VALIDATION_BATCH]
            return place + 1, seen + _corner(self._forward(images)[-1])

        steps, looks = order.shape[0] // size, self._x_val.shape[0] // VALIDATION_BATCH
        _, seen = tf.while_loop(lambda place, _: place < steps, step, (0, 0.0), parallel_iterations=1)
        _, seen = tf.while_loop(lambda place, _: place < looks, look, (0, seen), parallel_iterations=1)
        return seen

    def _forward(self, images: Any) -> list[Any]:
        layers = [images]
        for kernel in self._kernels:
            layers.append(tf.matmul(layers[-1], kernel))
        return layers

    def _both_ways(self, images: Any) -> Any:
        """Forward; then a gradient for each kernel, and for the input of each kernel but the first."""
        *inputs, error = self._forward(images)
        seen = tf.zeros(())
        for place in reversed(range(len(inputs))):
            seen += _corner(tf.matmul(inputs[place], error, transpose_a=True))
            if place:
                error = tf.matmul(error, self._kernels[place], transpose_b=True)
        return seen

    def _adam(self) -> None:
        tf.raw_ops.ResourceApplyAdam(
            var=self._flat.handle,
            m=self._first.handle,
            v=self._second.handle,
            beta1_power=0.9,
            beta2_power=0.999,
            lr=1e-3,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-7,
            grad=self._gradient,
        )


def _corner(matrix: Any) -> Any:
    """One entry: a product that nobody reads would not be computed."""
    return tf.reshape(tf.slice(matrix, [0, 0], [1, 1]), [])
