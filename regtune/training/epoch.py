"""The whole-epoch model: a `keras.Sequential` whose training step is one epoch in one graph.

`fit` gives it one number a step, the epoch's; the graph shuffles, goes through all batches of the resident
training images, evaluates the resident validation images and returns the six METRICS. Keras' callbacks see an
epoch of one batch.

The arithmetic is stock Keras': its layers, its loss, its optimizer, its way of averaging over batches, the
short last batch included. Amounts (rates, strengths, learning rate) are variables, so the next trial of the
same structure uses the same graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from regtune.config.trial import METRICS, TrialConfig
from regtune.data.datasets import Data
from regtune.training.model import Seeds, build_model, layers_of

Sums = tuple[Any, ...]
"""Three float32 scalars over images: of the loss with penalty, of the cross-entropy, of correct answers."""


class Resident:
    """A data set's training and validation part as variables, so that graphs take another one of the same form.

    It keeps the present `Data` from being freed no longer than its owner does.
    """

    def __init__(self, data: Data) -> None:
        self.features, self.classes = data.features, data.classes
        self._data = weakref.ref(data)
        self._variables = [tf.Variable(part, trainable=False) for part in _parts(data)]

    def take(self, data: Data) -> bool:
        """Hold `data` from now on; False where it has another number of images, of pixels or of classes."""
        if self._data() is data:
            return True
        shapes = [variable.shape for variable in self._variables]
        if data.classes != self.classes or [part.shape for part in _parts(data)] != shapes:
            return False
        for variable, part in zip(self._variables, _parts(data), strict=True):
            variable.assign(part)
        self._data = weakref.ref(data)
        return True

    def training(self) -> tuple[Any, Any]:
        """Images and labels, read once: a graph that read them in each step of a loop would take longer."""
        return self._variables[0].value(), self._variables[1].value()

    def validation(self) -> tuple[Any, Any]:
        """Images and labels."""
        return self._variables[2].value(), self._variables[3].value()


def _parts(data: Data) -> tuple[Any, ...]:
    return data.x_train, data.y_train, data.x_val, data.y_val


class VariableDropout(keras.layers.Layer):  # type: ignore[misc]
    """Keras' Dropout, mask for mask and bit for bit, with the rate as a variable."""

    def __init__(self, rate: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = tf.Variable(rate, trainable=False)
        self.scale = tf.Variable(1 / (1 - rate), trainable=False)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def set_amount(self, rate: float, seed: int) -> None:
        """Start a trial. 1 / (1 - rate) is taken in double precision and rounded once, as Keras does."""
        self.rate.assign(rate)
        self.scale.assign(1 / (1 - rate))
        self.seed_generator.state.assign([seed, 0])

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        seed = tf.cast(tf.math.floormod(self.seed_generator.next(), tf.int32.max - 1), tf.int32)
        noise = tf.random.stateless_uniform(tf.shape(inputs), seed=seed)
        return tf.where(noise >= self.rate, inputs * self.scale, 0.0)


class VariablePenalty:
    """Keras' L1L2, bit for bit, with strengths as variables; adding a strength of 0 changes no bit."""

    def __init__(self, l1: float, l2: float) -> None:
        self.l1 = tf.Variable(l1, trainable=False)
        self.l2 = tf.Variable(l2, trainable=False)

    def set_amount(self, l1: float, l2: float) -> None:
        """Start a trial."""
        self.l1.assign(l1)
        self.l2.assign(l2)

    def __call__(self, kernel: Any) -> Any:
        absolute = self.l1 * keras.ops.sum(keras.ops.absolute(kernel))
        return absolute + self.l2 * keras.ops.sum(keras.ops.square(kernel))

    def with_gradient(self, kernel: Any) -> tuple[Any, Any]:
        """The penalty and its gradient with respect to `kernel`; that of the absolute value is 0 at 0."""
        weights = tf.convert_to_tensor(kernel)
        amount = self.l1 * tf.reduce_sum(tf.abs(weights)) + (2 * self.l2) * tf.nn.l2_loss(weights)
        return amount, tf.sign(weights) * self.l1 + weights * (2 * self.l2)


class EpochModel(keras.Sequential):  # type: ignore[misc]
    """The network of a structure over resident data: `start` it with a configuration, `fit` it on `epochs`.

    epochs: their numbers from 0, one for each step of `fit`.
    """

    def __init__(self, config: TrialConfig, resident: Resident) -> None:
        layers = layers_of(config, resident.classes, VariableDropout, VariablePenalty)
        super().__init__([keras.Input((resident.features,), name="pixels"), *layers], name="epoch_model")
        self._resident = resident
        self._batch_size = config.training.batch_size
        self._config = config
        self._order_seed = tf.Variable(0, trainable=False)
        self._initial = self.get_weights()
        options = tf.data.Options()
        options.autotune.enabled = False  # the end of `fit` would wait for the next poll of its thread
        self.epochs = tf.data.Dataset.range(10**9).with_options(options)
        optimizer = make_optimizer(config)
        loss = keras.losses.SparseCategoricalCrossentropy()
        self.compile(optimizer=optimizer, loss=loss, jit_compile=False)
        optimizer.build(self.trainable_variables)
        self._amounts = {name: tf.Variable(0.0, trainable=False) for name in self._optimizer_amounts(config)}
        for name, amount in self._amounts.items():
            setattr(optimizer, name, amount)
        self._training_figures = tf.function(lambda: self._evaluate(*resident.training()), autograph=False)

    @property
    def metrics(self) -> list[Any]:
        return []  # the graph computes its own figures

    def start(self, config: TrialConfig) -> None:
        """Take a configuration's initial weights, amounts and seeds; forget everything of the one before."""
        self._config = config
        regularization, seeds = config.regularization, Seeds.of(config)
        self.set_weights(self._initial)
        hidden = -1
        for layer in self.layers:
            if isinstance(layer, keras.layers.Dense):
                hidden += 1
                initial = keras.initializers.GlorotUniform(seed=seeds.kernels[hidden])
                layer.kernel.assign(initial(layer.kernel.shape))
                if layer.kernel_regularizer is not None:
                    layer.kernel_regularizer.set_amount(regularization.l1[hidden], regularization.l2[hidden])
            elif isinstance(layer, VariableDropout):
                layer.set_amount(regularization.dropout[hidden], seeds.dropouts[hidden])
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        self.optimizer.learning_rate = config.training.learning_rate
        for name, amount in self._amounts.items():
            amount.assign(getattr(config.training, name))
        self._order_seed.assign(seeds.order)

    def snapshot(self) -> Callable[[], keras.Sequential]:
        """Return a function that creates a network of stock layers with the present weights.

        This class itself would not load where regtune is not installed.
        """
        config, weights = self._config, self.get_weights()
        features, classes = self.input_shape[-1], self.output_shape[-1]

        def make() -> keras.Sequential:
            network = build_model(config, features, classes)
            network.set_weights(weights)
            return network

        return make

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the plain network, for callbacks such as ModelCheckpoint."""
        self.snapshot()().save(*args, **kwargs)

    def train_step(self, epoch: Any) -> dict[str, Any]:
        """One epoch. `epoch` counts from 0."""
        x, y = self._resident.training()
        order = batch_order(self._order_seed, epoch, x.shape[0])

        def batch(begin: Any, count: int) -> Sums:
            rows = self._part(order, begin, count)
            return self.train_batch(tf.gather(x, rows), tf.gather(y, rows))

        loss, cross_entropy, accuracy = over_batches(x.shape[0], self._batch_size, batch)
        validation = self._evaluate(*self._resident.validation())
        figures = (loss, accuracy, cross_entropy, validation[0], validation[2], validation[1])
        return dict(zip(METRICS, figures, strict=True))

    def training_figures(self) -> tuple[float, float]:
        """Cross-entropy without penalty and accuracy over all training images, of the weights as they are."""
        _, cross_entropy, accuracy = self._training_figures()
        return float(cross_entropy), float(accuracy)

    @classmethod
    def _optimizer_amounts(cls, config: TrialConfig) -> tuple[str, ...]:
        """Which of the optimizer's numbers become variables: not momentum, which Keras' SGD compares with 0."""
        return ("weight_decay",) if config.training.optimizer == "adamw" else ()

    @staticmethod
    def _part(order: Any, begin: Any, count: int) -> Any:
        """Without a static shape, as Keras has it: with one, TensorFlow would simplify Keras' divisions."""
        return order[begin : begin + count]

    def train_batch(self, x: Any, y: Any) -> Sums:
        with tf.GradientTape() as tape:
            probabilities = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=probabilities)
        variables = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return _sums(loss, y, probabilities)

    def _evaluate(self, x: Any, y: Any) -> Sequence[Any]:
        def batch(begin: Any, count: int) -> Sums:
            images, labels = x[begin : begin + count], y[begin : begin + count]
            probabilities = self(images, training=False)
            loss = self.compute_loss(x=images, y=labels, y_pred=probabilities, training=False)
            return _sums(loss, labels, probabilities)

        return over_batches(x.shape[0], self._batch_size, batch)


def batch_order(seed: Any, epoch: Any, count: int) -> Any:
    """The order of `count` training images in an epoch (counted from 0): a permutation, int32.

    A trial's seed for it is `Seeds.of(config).order`.
    """
    key = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.experimental.stateless_shuffle(tf.range(count), seed=key)


def make_optimizer(config: TrialConfig) -> Any:
    """Keras' own optimizer of a configuration."""
    training = config.training
    if training.optimizer == "sgd":
        return keras.optimizers.SGD(training.learning_rate, momentum=training.momentum)
    if training.optimizer == "adamw":
        return keras.optimizers.AdamW(training.learning_rate, weight_decay=training.weight_decay)
    return keras.optimizers.Adam(training.learning_rate)


def _sums(loss: Any, y: Any, probabilities: Any) -> Sums:
    count = tf.cast(tf.shape(y)[0], tf.float32)
    cross_entropy = keras.losses.sparse_categorical_crossentropy(y, probabilities)
    correct = keras.metrics.sparse_categorical_accuracy(y, probabilities)
    return loss * count, tf.reduce_sum(cross_entropy), tf.reduce_sum(correct)


def over_batches(count: int, size: int, batch: Callable[[Any, int], Sums]) -> Sequence[Any]:
    """Means over `count` images of what `batch(begin, count)` sums: loss, cross-entropy and accuracy.

    They are added up batch by batch, as Keras does, and the images are counted along the way: by a constant, TensorFlow
    would multiply with its rounded reciprocal.
    """
    size = min(size, count)
    full, rest = divmod(count, size)

    def body(step: Any, seen: Any, sums: Sums) -> tuple[Any, Any, Sums]:
        return step + 1, seen + float(size), tuple(map(tf.add, sums, batch(step * size, size)))

    zero = tf.zeros(())
    start = (0, zero, (zero, zero, zero))
    step, seen, sums = tf.while_loop(lambda step, *_: step < full, body, start, parallel_iterations=1)
    if rest:
        seen, sums = seen + float(rest), tuple(map(tf.add, sums, batch(step * size, rest)))
    return [total / seen for total in sums]
