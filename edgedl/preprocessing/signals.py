"""Steps on signals: window, mfcc."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgedl.errors import InputError
from edgedl.preprocessing.op import Array, Op, Shape, flag, integer, key, number

_SIGNALS_AT_ONCE = 32  # mfcc frames of one-second signals take about 10 MB


@dataclass(frozen=True, kw_only=True)
class Window(Op):
    """Pieces of fixed length, each a sample; those of one signal follow one another."""

    op = "window"
    length: int = key(integer(1))
    step: int | None = key(integer(1), default=None)  # None: the length, so that pieces do not overlap
    pad: bool = key(flag, default=False)

    def count(self, time: int) -> int:
        """The pieces of a signal of `time` values."""
        return 1 + max(0, time - self.length) // (self.step or self.length)

    def apply(self, batch: Array) -> Array:
        """Shape (samples * count, length, ...)."""
        if batch.shape[1] < self.length:
            batch = np.pad(batch, [(0, 0), (0, self.length - batch.shape[1]), *[(0, 0)] * (batch.ndim - 2)])
        pieces = _frames(batch, self.length, self.step or self.length)
        return np.ascontiguousarray(pieces).reshape(-1, *pieces.shape[2:])

    def out_shape(self, shape: Shape) -> Shape:
        """(length) and the channels. Raises InputError where a signal is shorter and `pad` is false."""
        if len(shape) not in (1, 2):
            message = f"needs signals (time) or (time, channels), got shape {shape}"
            raise InputError(message)
        if shape[0] is not None and shape[0] < self.length and not self.pad:
            message = f"length {self.length} is longer than the signal, {shape[0]}; pad = true adds zeros"
            raise InputError(message)
        return (self.length, *shape[1:])

    def out_dtype(self, dtype: str) -> str:
        """That of the signal."""
        return dtype


def _frames(signals: Array, length: int, step: int) -> Array:
    """(samples, time, ...) as a view (samples, count, length, ...)."""
    view = np.lib.stride_tricks.sliding_window_view(signals, length, axis=1)[:, ::step]
    return np.moveaxis(view, -1, 2)


@dataclass(frozen=True, kw_only=True)
class Mfcc(Op):
    """Mel frequency cepstral coefficients, as `tf.signal` and HTK compute them; float64 inside, float32 out.

    1. Frames: [k * frame_step, k * frame_step + frame_length), a rest is dropped; lengths are in samples. The signal is
       taken as it is: 16-bit PCM needs `scale` with factor 1/32768 before.
    2. Hann window 0.5 - 0.5 cos(2 pi n / N), N = frame_length, or frame_length - 1 where that is odd.
    3. Magnitude |FFT|, not squared, of `fft_length` points, zeros added (default: the next power of two).
    4. `mel_bins` triangles whose corners are even in mel = 1127 ln(1 + hz / 700) from `lower_hz` to `upper_hz`, rising
       and falling linearly in mel, height 1; the bin of 0 Hz counts for nothing.
    5. ln(energy + log_offset).
    6. DCT-II: c[k] = sqrt(2 / M) * sum over m of e[m] cos(pi k (2 m + 1) / (2 M)), M = mel_bins, all k alike; the first
       `coefficients` are kept, k = 0 among them. No lifter, no pre-emphasis.
    """

    op = "mfcc"
    sample_rate_hz: int = key(integer(1))
    frame_length: int = key(integer(1))
    frame_step: int = key(integer(1))
    coefficients: int = key(integer(1))
    fft_length: int | None = key(integer(1), default=None)
    mel_bins: int = key(integer(1), default=40)
    lower_hz: float = key(number(0.0), default=20.0)
    upper_hz: float = key(number(0.0), default=4000.0)
    log_offset: float = key(number(0.0), default=1e-6)
    channel_axis: bool = key(flag, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fft_length is not None and self.fft_length < self.frame_length:
            message = f"fft_length must be >= frame_length {self.frame_length}, got {self.fft_length}"
            raise InputError(message)
        if not self.lower_hz < self.upper_hz <= self.sample_rate_hz / 2:
            message = (
                f"lower_hz < upper_hz <= sample_rate_hz / 2 must hold, "
                f"got {self.lower_hz:g}, {self.upper_hz:g} and {self.sample_rate_hz / 2:g}"
            )
            raise InputError(message)
        if self.coefficients > self.mel_bins:
            message = f"coefficients must be <= mel_bins {self.mel_bins}, got {self.coefficients}"
            raise InputError(message)

    def apply(self, batch: Array) -> Array:
        """Shape (samples, frames, coefficients), with a last axis of 1 where `channel_axis` is true."""
        n = self.frame_length
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / max(1, n - n % 2))
        points = self.fft_length or 1 << (n - 1).bit_length()
        mel, dct = self._mel_matrix(points // 2 + 1), self._dct_matrix()
        parts = [np.empty((0, *self._frame_shape(batch.shape[1])), np.float32)]
        for start in range(0, len(batch), _SIGNALS_AT_ONCE):
            frames = _frames(batch[start : start + _SIGNALS_AT_ONCE], n, self.frame_step)
            magnitude = np.abs(np.fft.rfft(frames * window, points))
            parts.append((np.log(magnitude @ mel + self.log_offset) @ dct).astype(np.float32))
        result = np.concatenate(parts)
        return result[..., None] if self.channel_axis else result

    def out_shape(self, shape: Shape) -> Shape:
        """(frames, coefficients). Raises InputError where a signal is shorter than a frame."""
        if len(shape) != 1:
            message = f"needs signals (time), got shape {shape}"
            raise InputError(message)
        time = shape[0]
        if time is not None and time < self.frame_length:
            message = f"frame_length {self.frame_length} is longer than the signal, {time}"
            raise InputError(message)
        return (*self._frame_shape(time), 1) if self.channel_axis else self._frame_shape(time)

    def _frame_shape(self, time: int | None) -> tuple[int, int] | tuple[None, int]:
        if time is None:
            return None, self.coefficients
        return 1 + (time - self.frame_length) // self.frame_step, self.coefficients

    def _mel_matrix(self, bins: int) -> Array:
        """Step 4: shape (bins, mel_bins)."""
        own = _mel(np.linspace(0.0, self.sample_rate_hz / 2, bins))[:, None]
        corners = np.linspace(_mel(self.lower_hz), _mel(self.upper_hz), self.mel_bins + 2)
        left, centre, right = corners[:-2], corners[1:-1], corners[2:]
        triangles = np.maximum(0.0, np.minimum((own - left) / (centre - left), (right - own) / (right - centre)))
        triangles[0] = 0.0
        return np.asarray(triangles)

    def _dct_matrix(self) -> Array:
        """Step 6: shape (mel_bins, coefficients)."""
        m, k = np.arange(self.mel_bins)[:, None], np.arange(self.coefficients)
        return np.asarray(np.sqrt(2 / self.mel_bins) * np.cos(np.pi * k * (2 * m + 1) / (2 * self.mel_bins)))


def _mel(hz: float | Array) -> Array:
    return np.asarray(1127.0 * np.log1p(np.asarray(hz) / 700.0))
