"""Random variants of image samples while a model is fine-tuned; the same seed gives the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData

Array = NDArray[Any]
IMAGE_RANK = 4  # (samples, height, width, channels)
SHIFT = 1 / 8  # of the height and the width
SMALLEST_PART = 0.6  # of the height and the width, that fills the image
JITTER = 0.3  # of brightness, contrast and saturation
AUTO = {3: ("flip", "shift"), 1: ("shift",)}  # by channels: what is left and right matters in a spectrogram


@dataclass(frozen=True, kw_only=True, eq=False)
class Augmented(TrainingData):
    """Training data whose images come out different each time they are taken."""

    kinds: tuple[str, ...] = ()
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @classmethod
    def of(cls, data: TrainingData, kinds: tuple[str, ...], seed: int) -> Augmented:
        """`data`, varied. Raises InputError where no input is an image, but for auto alone."""
        if kinds != ("auto",) and not any(a.ndim == IMAGE_RANK for a in data.inputs.values()):
            shapes = {name: a.shape[1:] for name, a in data.inputs.items()}
            message = f"augment {', '.join(kinds)} is for images (height, width, channels), the inputs are {shapes}"
            raise InputError(message)
        generator = np.random.default_rng([seed, 3])
        return cls(inputs=data.inputs, targets=data.targets, rows=data.rows, kinds=kinds, generator=generator)

    def take(self, positions: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Inputs, varied, and targets of these samples."""
        inputs, targets = super().take(positions)
        return augmented(inputs, self.kinds, self.generator), targets

    def state(self) -> Any:
        """Of the random generator."""
        return self.generator.bit_generator.state

    def restore(self, state: Any) -> None:
        """Go on drawing where `state` was asked for."""
        self.generator.bit_generator.state = state

    def split(self, fraction: float, seed: int) -> tuple[TrainingData, TrainingData]:
        """As for all training data; what is held out stays as it is."""
        kept, held = super().split(fraction, seed)
        varied = Augmented(
            inputs=kept.inputs, targets=kept.targets, rows=kept.rows, kinds=self.kinds, generator=self.generator
        )
        return varied, held


def check_labels(data: TrainingData, kinds: tuple[str, ...], where: str) -> None:
    """Raises InputError where a target has a value for each place of an image that moves: it would not move with it."""
    if not set(kinds) & {"flip", "shift", "zoom"}:
        return
    places = {a.shape[1:3] for a in data.inputs.values() if a.ndim == IMAGE_RANK}
    for name, target in data.targets.items():
        if target.ndim >= IMAGE_RANK - 1 and target.shape[1:3] in places:
            message = (
                f"{where}: augment moves the images, and labels {name!r} {target.shape[1:]} have a value for each "
                "place, which stays; leave augment out, or let the original model teach alone: distill = { alpha = 1 }"
            )
            raise InputError(message)


def augmented(inputs: Mapping[str, Array], kinds: tuple[str, ...], generator: np.random.Generator) -> dict[str, Array]:
    """A variant of each image: # (n, height, width, channels) -> the same shape and type; other inputs stay.

    Several images of a sample vary alike: what one sees on its left the other does.
    """
    varied, start = {}, generator.bit_generator.state
    for name, batch in inputs.items():
        if batch.ndim == IMAGE_RANK:
            generator.bit_generator.state = start
            asked = (*kinds, *(AUTO.get(batch.shape[-1], ()) if "auto" in kinds else ()))
            if "flip" in asked:
                batch = flipped(batch, generator)
            if "zoom" in asked:
                batch = zoomed(batch, generator)
            if "shift" in asked:
                batch = shifted(batch, generator)
            if "color" in asked:
                batch = jittered(batch, generator)
            if "mixup" in asked:
                batch = mixed(batch, generator)
        varied[name] = batch
    return varied


def flipped(batch: Array, generator: np.random.Generator) -> Array:
    """Each image, left and right exchanged with probability one half."""
    flips = generator.random(len(batch)) < 0.5
    return np.where(flips[:, None, None, None], batch[:, :, ::-1], batch)


def shifted(batch: Array, generator: np.random.Generator) -> Array:
    """Each image moved by up to an eighth of its size, the edge repeated."""
    _, height, width, _ = batch.shape
    reach = [max(1, int(height * SHIFT)), max(1, int(width * SHIFT))]
    padded = np.pad(batch, [(0, 0), (reach[0], reach[0]), (reach[1], reach[1]), (0, 0)], mode="edge")
    moves = [generator.integers(0, 2 * r + 1, len(batch)) for r in reach]
    rows = moves[0][:, None] + np.arange(height)
    columns = moves[1][:, None] + np.arange(width)
    return np.asarray(padded[np.arange(len(batch))[:, None, None], rows[:, :, None], columns[:, None, :]])


def zoomed(batch: Array, generator: np.random.Generator) -> Array:
    """A part of each image, of 0.6 to 1 of its sides and anywhere, enlarged to its size; each second one stays whole.

    Szegedy et al., arXiv:1409.4842, section 6, with the aspect kept; linear in between.
    """
    count, height, width, _ = batch.shape
    part = np.where(generator.random(count) < 0.5, 1, generator.uniform(SMALLEST_PART, 1, count))
    found = batch.astype(np.float32)
    image, row = np.arange(count)[:, None], np.arange(height)[:, None]
    low, high, share = _places(part, height, generator)
    near, far = found[image, low], found[image, high]
    found = near + share[:, :, None, None] * (far - near)
    low, high, share = _places(part, width, generator)
    near, far = (found[image[:, None], row, at[:, None]] for at in (low, high))
    found = near + share[:, None, :, None] * (far - near)
    return np.asarray(found if batch.dtype.kind == "f" else np.rint(found), batch.dtype)


def _places(part: Array, size: int, generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Where each row or column of the enlarged parts comes from: # (count, size) before, after, share of after."""
    start = generator.random(len(part)) * (1 - part) * (size - 1)
    at = start[:, None] + part[:, None] * np.arange(size)
    low = np.minimum(at.astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), (at - low).astype(np.float32)


def jittered(batch: Array, generator: np.random.Generator) -> Array:
    """Each image with its brightness, contrast and saturation 0.7 to 1.3 of what they were, within the batch's range.

    Howard, arXiv:1312.5402, section 2.2. Brightness counts from the batch's least value: inputs may be centred on 0.
    """
    least, most = batch.min(), batch.max()
    found = batch.astype(np.float32) - np.float32(least)
    kept = generator.uniform(1 - JITTER, 1 + JITTER, (3, len(batch), 1, 1, 1)).astype(np.float32)
    found *= kept[0]
    for share, axes in ((kept[1], (1, 2)), (kept[2], 3)):
        grey = found.mean(axis=axes, keepdims=True)
        found = grey + share * (found - grey)
    found = np.clip(found + np.float32(least), least, most)
    return np.asarray(found if batch.dtype.kind == "f" else np.rint(found), batch.dtype)


def mixed(batch: Array, generator: np.random.Generator) -> Array:
    """Pairs of images blended with a weight from Beta(1, 1); Zhang et al., arXiv:1710.09412, eq. (1), inputs only."""
    weights = generator.random((len(batch), 1, 1, 1), dtype=np.float32)
    other = batch[generator.permutation(len(batch))]
    blend = weights * batch.astype(np.float32) + (1 - weights) * other.astype(np.float32)
    return np.asarray(blend if batch.dtype.kind == "f" else np.rint(blend), batch.dtype)
