"""The notebook's way: stock Keras `fit` on float64 images, batch 32, all cores, validation after each epoch."""

from __future__ import annotations

import sys

import keras
import numpy as np
from sklearn.model_selection import train_test_split

from regtune.data.datasets import load_arrays
from regtune.settings import load_settings

found = load_arrays("mnist", load_settings().data_dir)
images = found.x_train.astype(np.float64) / 255.0
x_train, x_val, y_train, y_val = train_test_split(images, found.y_train, test_size=0.2, random_state=42)

model = keras.Sequential(
    [
        keras.Input((784,)),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])


def fit(epochs: int) -> None:
    """What the notebook's cell does."""
    model.fit(x_train, y_train, batch_size=32, epochs=epochs, validation_data=(x_val, y_val), verbose=0)


fit(1)
print("ready", flush=True)
for line in sys.stdin:
    fit(int(line))
    print("done", flush=True)
