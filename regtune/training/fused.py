"""The fused model: the same training in fewer passes, for `training: {fused: true}`.

Each step is Keras' step to within rounding: one pass of TensorFlow's own kernel applies the optimizer, the penalty's
gradient is written down instead of derived, and validation goes through larger batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from regtune.config.trial import TrialConfig
from regtune.training.epoch import EpochModel, Sums, VariableDropout, over_batches

EVALUATION_BATCH = 1000
"""Images at once where they are only looked at."""
WITH_MODES = (keras.layers.BatchNormalization, VariableDropout)
"""Layers that do one thing while training and another afterwards."""


class FusedModel(EpochModel):
    """An `EpochModel` that steps with TensorFlow's fused kernels."""

    @classmethod
    def _optimizer_amounts(cls, config: TrialConfig) -> tuple[str, ...]:
        has_momentum = config.training.optimizer == "sgd" and config.training.momentum > 0
        return ("momentum",) if has_momentum else super()._optimizer_amounts(config)

    @staticmethod
    def _part(order: Any, begin: Any, count: int) -> Any:
        return tf.slice(order, [begin], [count])

    def train_batch(self, x: Any, y: Any) -> Sums:
        count = float(x.shape[0])
        with tf.GradientTape() as tape:
            logits = self._logits(x, training=True)
            cross_entropy = _cross_entropy(logits, y)
            mean = cross_entropy / count
        variables = self.trainable_weights
        gradients = tape.gradient(mean, variables)
        penalty = tf.zeros(())
        for place, regularizer in self._penalized():
            amount, slope = regularizer.with_gradient(variables[place])
            penalty += amount
            gradients[place] += slope
        apply_fused(self.optimizer, gradients, variables)
        return cross_entropy + penalty * count, cross_entropy, _correct(logits, y)

    def _evaluate(self, x: Any, y: Any) -> Sequence[Any]:
        def batch(begin: Any, count: int) -> Sums:
            labels = y[begin : begin + count]
            logits = self._logits(x[begin : begin + count], training=False)
            cross_entropy = _cross_entropy(logits, labels)
            return cross_entropy, cross_entropy, _correct(logits, labels)

        _, cross_entropy, accuracy = over_batches(x.shape[0], EVALUATION_BATCH, batch)
        weights = self.trainable_weights
        penalties = [regularizer.with_gradient(weights[place])[0] for place, regularizer in self._penalized()]
        return tf.add_n([cross_entropy, *penalties]), cross_entropy, accuracy

    def _penalized(self) -> list[tuple[int, Any]]:
        """The place of each penalized kernel among the trainable weights, and its penalty."""
        weights = enumerate(self.trainable_weights)
        return [(place, weight.regularizer) for place, weight in weights if weight.regularizer is not None]

    def _logits(self, x: Any, training: bool) -> Any:
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x, training=training) if isinstance(layer, WITH_MODES) else layer(x)
        return tf.nn.bias_add(tf.matmul(x, last.kernel), last.bias)


def apply_fused(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """One step of a Keras optimizer on its own state, each variable in one pass.

    Adam (Kingma and Ba 2015) is algorithm 1 with the efficient order of its section 2, as in Keras; AdamW's
    decay goes before it (Loshchilov and Hutter 2019); SGD's momentum is Keras'.
    """
    rate = tf.convert_to_tensor(optimizer.learning_rate)
    handles = [variable.value.handle for variable in variables]
    if isinstance(optimizer, keras.optimizers.SGD) and optimizer.momentums:
        momentum = tf.convert_to_tensor(optimizer.momentum)
        for handle, gradient, state in zip(handles, gradients, optimizer.momentums, strict=True):
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=handle, accum=state.value.handle, lr=rate, grad=gradient, momentum=momentum
            )
    elif isinstance(optimizer, keras.optimizers.SGD):
        for handle, gradient in zip(handles, gradients, strict=True):
            tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=rate, delta=gradient)
    else:
        if optimizer.weight_decay is not None:
            decay = rate * optimizer.weight_decay
            for handle, variable in zip(handles, variables, strict=True):
                tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=decay, delta=variable.value)
        step = tf.cast(optimizer.iterations + 1, tf.float32)
        powers = tf.pow(optimizer.beta_1, step), tf.pow(optimizer.beta_2, step)
        moments = (
            [
                state for state in optimizer.variables if state.path.endswith(name)
            ]  # in the order of `variables`
            for name in ("_momentum", "_velocity")
        )
        for handle, gradient, first, second in zip(handles, gradients, *moments, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=handle,
                m=first.value.handle,
                v=second.value.handle,
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=rate,
                beta1=optimizer.beta_1,
                beta2=optimizer.beta_2,
                epsilon=optimizer.epsilon,
                grad=gradient,
            )
    optimizer.iterations.assign_add(1)


def _cross_entropy(logits: Any, y: Any) -> Any:
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))


def _correct(logits: Any, y: Any) -> Any:
    answers = tf.argmax(logits, axis=-1, output_type=tf.int32)
    return tf.reduce_sum(tf.cast(tf.equal(answers, y), tf.float32))
