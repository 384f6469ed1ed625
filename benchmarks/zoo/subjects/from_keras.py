"""Keras 3 on its torch backend: models saved as .keras and .h5 and loaded again."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import torch
from keras import layers

from benchmarks.zoo.case import Case, Subject


def subjects() -> list[Subject]:
    """Return each model from both kinds of file."""
    if keras.backend.backend() != "torch":
        raise ImportError("Keras runs on another backend; set KERAS_BACKEND=torch")
    return [
        Subject("keras", f"{name}{suffix}", typed=partial(_saved_and_loaded, name, suffix))
        for name in _MODELS
        for suffix in (".keras", ".h5")
    ]


def _saved_and_loaded(name: str, suffix: str, dtype: torch.dtype) -> Case:
    keras.config.set_floatx(str(dtype).removeprefix("torch."))
    keras.config.set_dtype_policy(keras.config.floatx())
    logging.getLogger("absl").setLevel(logging.ERROR)  # it calls .h5 a thing of the past
    keras.utils.set_random_seed(0)
    make, shape = _MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        make().save(path)
        model = keras.saving.load_model(path, compile=False)
    return Case(model, (torch.randn(2, *shape, dtype=torch.float32).to(dtype),), named=_named)


def _named(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    # torch sees Keras's parameters under numbers.
    for variable in model.variables:
        yield variable.path.replace("/", "."), variable.value


def _dense() -> Any:
    return keras.Sequential([layers.Input((12,)), layers.Dense(16, "relu"), layers.Dropout(0.5), layers.Dense(4)])


def _convolutional() -> Any:
    return keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def _residual() -> Any:
    x = inputs = layers.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(x)
    for _ in range(2):
        h = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
        h = layers.Conv2D(8, 3, padding="same")(layers.Activation("relu")(h))
        x = layers.Activation("relu")(layers.Add()([x, h]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5)(x))


def _mobile() -> Any:
    x = inputs = layers.Input((16, 16, 3))
    x = layers.SeparableConv2D(8, 3, padding="same")(layers.ZeroPadding2D()(x))
    x = layers.DepthwiseConv2D(3, strides=2)(layers.ReLU(6.0)(x))
    gate = layers.Dense(8, "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, gate])
    x = layers.Conv2DTranspose(4, 3, strides=2)(layers.PReLU()(x))
    return keras.Model(inputs, layers.GlobalMaxPooling2D()(x))


def _transformer() -> Any:
    x = inputs = layers.Input((6, 16))
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(h, h)])
        h = layers.Dense(32, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(16)(h)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(4)(x))


def _recurrent(layer: str) -> Any:
    return keras.Sequential(
        [
            layers.Input((5, 6)),
            layers.Bidirectional(getattr(layers, layer)(8, return_sequences=True)),
            getattr(layers, layer)(8),
            layers.Dense(4),
        ]
    )


def _one_dimensional() -> Any:
    return keras.Sequential(
        [
            layers.Input((20, 3)),
            layers.Conv1D(8, 3, activation="elu"),
            layers.MaxPooling1D(),
            layers.Conv1D(8, 3, dilation_rate=2, padding="causal", activation="tanh"),
            layers.GroupNormalization(2),
            layers.Permute((2, 1)),
            layers.Reshape((-1,)),
            layers.Dense(4),
        ]
    )


def _three_dimensional() -> Any:
    return keras.Sequential(
        [
            layers.Input((8, 8, 8, 1)),
            layers.Conv3D(4, 3, activation="swish"),
            layers.MaxPooling3D(),
            layers.Conv3D(8, 3, activation="leaky_relu"),
            layers.GlobalAveragePooling3D(),
            layers.Dense(3),
        ]
    )


def _unet() -> Any:
    inputs = layers.Input((16, 16, 2))
    first = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    h = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(first))
    up = layers.Concatenate()([first, layers.UpSampling2D(interpolation="bilinear")(h)])
    up = layers.Average()([layers.Conv2D(4, 3, padding="same")(up), layers.Conv2DTranspose(4, 2, strides=2)(h)])
    return keras.Model(inputs, layers.Conv2D(2, 1)(up))


_MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "dense": (_dense, (12,)),
    "convolutional": (_convolutional, (16, 16, 3)),
    "residual": (_residual, (16, 16, 3)),
    "mobile, squeeze and excite": (_mobile, (16, 16, 3)),
    "transformer": (_transformer, (6, 16)),
    "LSTM": (partial(_recurrent, "LSTM"), (5, 6)),
    "GRU": (partial(_recurrent, "GRU"), (5, 6)),
    "SimpleRNN": (partial(_recurrent, "SimpleRNN"), (5, 6)),
    "1-D": (_one_dimensional, (20, 3)),
    "3-D": (_three_dimensional, (8, 8, 8, 1)),
    "U-Net": (_unet, (16, 16, 2)),
}
