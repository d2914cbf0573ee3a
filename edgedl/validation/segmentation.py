"""The metric of class maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError
from edgedl.validation.classification import Thresholded, above_threshold, check_labels, ratio, tally
from edgedl.validation.metrics import Sums, check_numbers
from edgedl.validation.parity import slices
from edgedl.validation.statistics import Floats

Array = NDArray[Any]

_IGNORED = 255  # pixels without a class, as in PASCAL VOC and Cityscapes


def _are_classes(outputs: Array) -> bool:
    """Whether these are whole numbers from 0: runtimes may give integers as floats."""
    return all(
        bool(np.all((outputs[part] >= 0) & (np.mod(outputs[part], 1) == 0)))
        for part in slices(len(outputs), 8 * outputs[:1].size)
    )


class MeanIou(Thresholded, Sums):
    """Intersection over union of class maps, summed over all samples, then averaged over the classes that occur.

    Outputs are scores (samples, h, w, classes), one sigmoid (samples, h, w, 1), or integer class maps; targets are
    class maps or one-hot. Pixels whose target is 255 are left out where there are fewer classes.
    """

    name = "miou"

    def terms(self, outputs: Array, targets: Array) -> Floats:
        """Intersections, then unions: shape (samples, 2 * classes)."""
        check_numbers(outputs, targets)
        most = targets[targets != _IGNORED].max(initial=0)
        codes = outputs.dtype.kind in "biu" or (_are_classes(outputs) and max(outputs.max(), most) > 1)
        if outputs.shape[3:] == (1,) and codes:
            outputs = outputs[..., 0]
        maps = outputs.ndim == 3 and _are_classes(outputs)
        if not maps and outputs.ndim != 4:
            message = f"metric miou: needs outputs (samples, h, w, classes) or integer class maps, got {outputs.shape}"
            raise InputError(message)
        classes = max(2, outputs.shape[-1])
        if maps:
            classes = int(max(outputs.max(), most)) + 1
        if classes <= 2 and (targets == _IGNORED).any() and np.isin(targets, (0, _IGNORED)).all():
            message = f"metric miou: targets are 0 and {_IGNORED}, which means no class; divide masks by {_IGNORED}"
            raise InputError(message)
        parts = [
            self._counts(outputs[part], targets[part], classes, maps)
            for part in slices(len(outputs), 8 * outputs[:1].size * (classes if maps else 1))
        ]
        return np.concatenate(parts)

    def combine(self, sums: Floats) -> Floats:
        """Shape (resamples,)."""
        both, either = np.split(sums, 2, axis=1)
        return np.asarray(ratio(both, either).sum(axis=1) / np.maximum((either > 0).sum(axis=1), 1))

    def _counts(self, outputs: Array, targets: Array, classes: int, maps: bool) -> Floats:
        if targets.shape == outputs.shape and not maps and outputs.shape[-1] > 1:
            true = targets.argmax(axis=-1)
        else:
            true = targets[..., 0] if targets.shape[3:] == (1,) else targets
        if maps:
            predicted = outputs
        elif outputs.shape[-1] == 1:
            predicted = above_threshold(outputs[..., 0], self.threshold, self.name)
        else:
            predicted = outputs.argmax(axis=-1)
        if predicted.shape != true.shape:
            message = f"metric miou: targets {targets.shape} do not fit outputs {outputs.shape}"
            raise InputError(message)
        n = len(true)
        said, label = predicted.reshape(n, -1).astype(np.intp), true.reshape(n, -1)
        kept = (label != _IGNORED) | (classes > _IGNORED)
        check_labels(np.where(kept, label, 0), classes)
        row = np.broadcast_to(np.arange(n)[:, None] * classes, label.shape)[kept]
        said, label = said[kept], label[kept].astype(np.intp)
        both, predictions, actual = tally(row + said, row + label, n * classes, None)
        unions = predictions + actual - both
        return np.concatenate([both.reshape(n, classes), unions.reshape(n, classes)], axis=1)
