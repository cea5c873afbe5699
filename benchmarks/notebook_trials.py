"""Whole trials in the notebook's way: stock Keras `fit` on float64 images, both cores, EarlyStopping, no pruning.

Reads one configuration a line (JSON) from standard input; answers with the seconds and epochs of its training.
"""

from __future__ import annotations

import json
import sys
import time

import keras
import numpy as np
from sklearn.model_selection import train_test_split

from regtune.config.trial import TrialConfig
from regtune.data.datasets import load_arrays
from regtune.settings import load_settings
from regtune.training.model import build_model

found = load_arrays("mnist", load_settings().data_dir)
images = found.x_train.astype(np.float64) / 255.0
x_train, x_val, y_train, y_val = train_test_split(images, found.y_train, test_size=0.2, random_state=42)

print("ready", flush=True)
for line in sys.stdin:
    config = TrialConfig.from_dict(json.loads(line))
    begun = time.perf_counter()
    model = build_model(config)
    model.compile(
        optimizer=keras.optimizers.Adam(config.training.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    stopping = config.early_stopping
    callbacks = (
        [keras.callbacks.EarlyStopping(patience=stopping.patience, restore_best_weights=True)]
        if stopping
        else []
    )
    history = model.fit(
        x_train,
        y_train,
        batch_size=config.training.batch_size,
        epochs=config.training.max_epochs,
        validation_data=(x_val, y_val),
        callbacks=callbacks,
        verbose=0,
    )
    print(time.perf_counter() - begun, len(history.epoch), flush=True)
