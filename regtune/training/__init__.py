"""The training of one configuration; `loop.train` imports TensorFlow."""
