"""A few values shared by many weights: float centroids, and integer codes under per-channel scales. Arrays only.

A matrix is a kernel as (weights of a channel, channels). A codebook is what its codes may be, sorted.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TOP = 127  # int8, narrow range: the scale of a channel is max |w| / 127
ROUNDS = 100  # of k-means, which mostly settles long before
STARTS = (1.0, 0.8, 0.6, 0.4)  # of the largest weight of a channel: large ones may be cut
SMALLEST = 1e-30
FIT_ROUNDS = 2  # of rate and codebook in turns
FEWEST = 4  # codewords: the two ends, zero, and one more
NEARLY = 1.15  # times the bits asked for: codewords that a rate can make fit
TURNS = 8  # of codes, codebook and scales
LENGTH_ROUNDS = 2  # until the codes and the lengths of the codewords agree
UNUSED = 1.0  # bits that a code without any weight costs more than one with a single weight
RATES = (1e-5, 10.0)  # squared error, relative to the mean square, that is given for a bit
RATE_STEP = 1.04
NARROW = 1.5  # times the rate of before, tried first
CODE_TOLERANCE = 1e-3  # of a code, that float32 leaves


def k_means(values: Array, clusters: int, *, keep_zero: bool = False) -> Array:
    """At most `clusters` centroids of values of any shape, ascending, float64; with `keep_zero` one of them is 0.

    Lloyd's algorithm in one dimension, from the better of two starts: spread evenly over the range (the best one in
    Han et al., arXiv:1510.00149, section 3.2), and over the ranks. Nothing is drawn at random. Values that are
    already that few come back as they are.
    """
    flat = np.sort(values, axis=None).astype(np.float64)
    distinct = np.unique(flat)
    if keep_zero and not (distinct == 0).any():
        distinct = np.sort(np.append(distinct, 0.0))
    if distinct.size <= clusters:
        return distinct
    if keep_zero:  # all the others are for what is not zero
        others = k_means(flat[flat != 0], clusters - 1) if clusters > 1 else ()
        return np.asarray(np.unique(np.append(others, 0.0)))
    ranks = ((np.arange(clusters) + 0.5) / clusters * flat.size).astype(int)
    settled = [_lloyd(flat, start) for start in (np.linspace(flat[0], flat[-1], clusters), flat[ranks])]
    errors = [float(np.square(flat - c[nearest(flat, c)]).sum()) for c in settled]
    return settled[int(np.argmin(errors))]


def _lloyd(ordered: Array, centroids: Array, rounds: int = ROUNDS) -> Array:
    """K-means on ascending values; a centroid without values stays where it is."""
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(rounds):
        edges = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [ordered.size]])
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(counts, 1)
        moved = np.where(counts == 0, centroids, means)
        if np.array_equal(moved, centroids):
            break
        centroids = np.sort(moved)
    return centroids


def nearest(values: Array, centroids: Array) -> Array:
    """The index of the nearest of ascending centroids for each value.

    # values (n, channels); centroids (k,) for all, or (k, channels) for each channel -> (n, channels)
    """
    middles = (centroids[1:] + centroids[:-1]) / 2
    if centroids.ndim == 1:
        return np.searchsorted(middles, values)
    indices = np.zeros(values.shape, np.int64)
    for middle in middles:
        indices += values > middle
    return indices


def means(values: Array, indices: Array, centroids: Array) -> Array:
    """Centroids moved to the mean of their values; those without any, and those at 0, stay. Shapes as in `nearest`."""
    flat = indices if centroids.ndim == 1 else indices * centroids.shape[1] + np.arange(centroids.shape[1])
    counts = np.bincount(flat.ravel(), minlength=centroids.size).reshape(centroids.shape)
    sums = np.bincount(flat.ravel(), values.ravel(), minlength=centroids.size).reshape(centroids.shape)
    return np.where((counts == 0) | (centroids == 0), centroids, sums / np.maximum(counts, 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """What integer codes may be: `values` (k,) int64 ascending with -127, 0 and 127, `bits` (k,) of each, and `rate`.

    A weight takes the codeword with the least (u - c)^2 + price * bits, u being weight / scale and the price `rate`
    times what `Coded` weighs its tensor with; with rate 0 that is the nearest.
    """

    values: Array
    bits: Array
    rate: float = 0.0

    def encode(self, matrix: Array, scales: Array, price: float = 0.0) -> Array:
        """The codes, # matrix (n, channels), scales (channels,) -> (n, channels) int64; a zero stays 0.

        The largest weight of a channel gets -127 or 127: max |w| / 127 is its scale again when it is quantized.
        """
        units = matrix / scales
        used, edges = envelope(self.values, price * self.bits)
        codes = np.where(matrix == 0, 0, self.values[used][np.searchsorted(edges, units)])
        largest = np.argmax(np.abs(units), axis=0)[None]
        top = np.sign(np.take_along_axis(matrix, largest, 0)).astype(np.int64) * TOP
        np.put_along_axis(codes, largest, top, 0)
        return codes


@dataclass(frozen=True, kw_only=True, eq=False)
class Coded:
    """Matrices as codes from one codebook: weight = code * scale of its channel.

    A bit is worth the `prices` (one a matrix) in squared codes: the rate times the matrix's mean square times its size,
    so that what is weighed is the relative error of each tensor as a whole.
    """

    book: Codebook
    scales: tuple[Array, ...]
    prices: tuple[float, ...]

    def codes(self, matrices: Sequence[Array]) -> list[Array]:
        """The codes of each matrix."""
        return [self.book.encode(*each) for each in zip(matrices, self.scales, self.prices, strict=True)]

    def project(self, index: int, matrix: Array) -> Array:
        """Matrix `index` as its codes write it, float32."""
        codes = self.book.encode(matrix, self.scales[index], self.prices[index])
        return np.asarray((codes * self.scales[index]).astype(np.float32))


def envelope(codebook: Array, costs: Array) -> tuple[Array, Array]:
    """Which codewords win somewhere, and where one takes over from the next: (used,), (used - 1,) ascending.

    Codeword c costs (u - c)^2 + cost, u^2 apart a line in u: the lower envelope of lines. This is entropy-constrained
    scalar quantization; Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37 (1989) 31, section II.
    """
    lines = np.square(codebook.astype(np.float64)) + costs
    used: list[int] = []
    edges: list[float] = []
    for i in range(codebook.size):
        while used:
            edge = (lines[i] - lines[used[-1]]) / (2 * (codebook[i] - codebook[used[-1]]))
            if not edges or edge > edges[-1]:
                edges.append(edge)
                break
            used.pop()
            edges.pop()
        used.append(i)
    return np.array(used), np.array(edges)


def code_lengths(codes: Sequence[Array], codebook: Array) -> Array:
    """The bits of each codeword in an ideal entropy code of all `codes`: -log2 of its share."""
    counts = sum(np.bincount(np.searchsorted(codebook, c).ravel(), minlength=codebook.size) for c in codes)
    total = max(1, int(np.sum(counts)))
    return np.where(counts > 0, -np.log2(np.maximum(counts, 1) / total), np.log2(total) + UNUSED)


def fit_codes(matrices: Sequence[Array], clusters: int, *, bits: float | None = None) -> Coded:
    """One codebook of at most `clusters` values, 0 and the two ends among them, and scales, with little error.

    In turns: the codes; each codeword the mean of what it stands for; each scale that of least squares, sum(w q) /
    sum(q q). With `bits` the zipped codes take at most so many a weight: as many codewords as nearly fit, then a rate
    found by bisection. Raises ValueError where no rate reaches `bits`.
    """
    coded = _plain(matrices, clusters)
    if bits is None:
        return coded
    fewer, more = clusters, coded
    while zipped_bits(coded.codes(matrices)) > bits * NEARLY and fewer > FEWEST:
        fewer, more = max(FEWEST, fewer * 4 // 5), coded
        coded = _plain(matrices, fewer)
    rated = [_rated(each, matrices, bits) for each in ([coded] if more is coded else [coded, more])]
    return min(rated, key=lambda each: relative_error(each, matrices))


def _rated(coded: Coded, matrices: Sequence[Array], bits: float) -> Coded:
    """Rate and codebook in turns."""
    for _ in range(FIT_ROUNDS):
        coded = _turn(at_bits(coded, matrices, bits), matrices)
    return at_bits(coded, matrices, bits)


def _plain(matrices: Sequence[Array], clusters: int) -> Coded:
    """The best of several starts, at rate 0."""
    starts = [_turn(_beginning(matrices, clusters, share), matrices) for share in STARTS]
    best = min(starts, key=lambda s: relative_error(s, matrices))
    return _turn(best, matrices, 2 * TURNS)


def at_bits(coded: Coded, matrices: Sequence[Array], bits: float) -> Coded:
    """The same codebook and scales at the least rate whose zipped codes take at most `bits` a weight.

    Raises ValueError where even the highest rate takes more.
    """

    def tried(rate: float) -> tuple[Coded, float]:
        priced = _priced(coded, matrices, rate)
        return priced, zipped_bits(priced.codes(matrices))

    free, taken = tried(0.0)
    if taken <= bits:
        return free
    (low, high), near = RATES, coded.book.rate
    best, least = tried(high)
    if least > bits:
        message = (
            f"bits = {bits:g} is out of reach: the fewest are {least:.2f}, as each channel keeps its largest weight"
        )
        raise ValueError(message)
    guesses = [near * NARROW, near / NARROW] if near else []  # where it was cannot be far
    while high / low > RATE_STEP:
        rate = guesses.pop(0) if guesses else float(np.sqrt(low * high))
        if not low < rate < high:
            continue
        priced, taken = tried(rate)
        if taken > bits:
            low = rate
        else:
            best, high = priced, rate
    return best


def _priced(coded: Coded, matrices: Sequence[Array], rate: float) -> Coded:
    """The same at another rate, the lengths of its codewords brought in line."""
    book = replace(coded.book, rate=rate)
    energies = [float(np.square(m / s).mean()) for m, s in zip(matrices, coded.scales, strict=True)]
    mean = sum(m.size for m in matrices) / len(matrices)
    prices = tuple(rate * e * m.size / mean for e, m in zip(energies, matrices, strict=True))
    priced = replace(coded, book=book, prices=prices)
    for _ in range(LENGTH_ROUNDS if rate else 0):
        priced = replace(priced, book=replace(book, bits=code_lengths(priced.codes(matrices), book.values)))
    return priced


def relative_error(coded: Coded, matrices: Sequence[Array]) -> float:
    """Squared error over squared weights, the mean of the matrices."""
    pairs = [(m, coded.project(i, m)) for i, m in enumerate(matrices)]
    ratios = [float(np.square(made - m).sum()) / max(float(np.square(m).sum()), SMALLEST) for m, made in pairs]
    return sum(ratios) / len(ratios)


def _beginning(matrices: Sequence[Array], clusters: int, share: float) -> Coded:
    """Scales under which 127 is a `share` of the largest weight, and the ranks of what is there as codebook."""
    peaks = [np.abs(m).max(axis=0).astype(np.float64) * share for m in matrices]
    scales = tuple(np.where(p > 0, p, TOP) / TOP for p in peaks)
    units = np.sort(np.concatenate([(m / s)[m != 0] for m, s in zip(matrices, scales, strict=True)])).clip(-TOP, TOP)
    ranks = ((np.arange(clusters) + 0.5) / clusters * units.size).astype(int)
    values = units[ranks] if units.size else np.zeros(clusters)
    book = _widened(np.rint(values), clusters)
    return Coded(book=book, scales=scales, prices=(0.0,) * len(matrices))


def _widened(values: Array, clusters: int) -> Codebook:
    """A codebook of `clusters` values with -127, 0 and 127, from some of them: new ones halve the widest gaps."""
    values = np.unique(np.append(values, [-TOP, 0, TOP])).astype(np.int64)
    while values.size > clusters:  # the ends and zero stay
        inner = np.flatnonzero(~np.isin(values, (-TOP, 0, TOP)))
        values = np.delete(values, inner[np.argmin(values[inner + 1] - values[inner - 1])])
    while values.size < clusters:
        gap = int(np.argmax(np.diff(values)))
        values = np.insert(values, gap + 1, (values[gap] + values[gap + 1]) // 2)
    return Codebook(values=values, bits=np.full(values.size, np.log2(values.size)))


def _turn(coded: Coded, matrices: Sequence[Array], rounds: int = TURNS) -> Coded:
    """Codes, codewords, scales and lengths, a few times over."""
    for _ in range(rounds):
        codes = coded.codes(matrices)
        values = coded.book.values
        sums, counts = np.zeros(values.size), np.zeros(values.size)
        for matrix, scale, code in zip(matrices, coded.scales, codes, strict=True):
            units = np.clip(matrix / scale, -TOP, TOP)
            where = np.searchsorted(values, code).ravel()
            sums += np.bincount(where, units.ravel(), minlength=values.size)
            counts += np.bincount(where, minlength=values.size)
        fixed = (counts == 0) | np.isin(values, (-TOP, 0, TOP))
        moved = np.unique(np.where(fixed, values, np.rint(sums / np.maximum(counts, 1))).astype(np.int64))
        scales = tuple(best_scales(m, c) for m, c in zip(matrices, codes, strict=True))
        book = replace(coded.book, values=moved, bits=np.full(moved.size, np.log2(moved.size)))
        coded = _priced(replace(coded, book=book, scales=scales), matrices, book.rate)
    return coded


def best_scales(matrix: Array, codes: Array) -> Array:
    """The scale of each channel with the least squared error under these codes; 1 where all are zero."""
    energy = np.square(codes).sum(axis=0).astype(np.float64)
    fitted = (matrix * codes).sum(axis=0) / np.maximum(energy, 1)
    return np.where((energy > 0) & (fitted > 0), fitted, 1.0)


def zipped_bits(codes: Sequence[Array]) -> float:
    """Bits a weight under zlib at level 9, tensors joined, each channel by channel as a .tflite file holds it."""
    joined = b"".join(np.ascontiguousarray(c.T, np.int8).tobytes() for c in codes)
    return 8 * len(zlib.compress(joined, 9)) / max(1, len(joined))


def taken(centroids: Array, indices: Array) -> Array:
    """The centroid behind each index; shapes as in `nearest`."""
    return centroids[indices] if centroids.ndim == 1 else np.take_along_axis(centroids, indices, axis=0)


def codes_of(matrix: Array) -> Array | None:
    """The integer codes of a matrix under the scales max |w| / 127, int64; None where it is no codes times scales."""
    peaks = np.abs(matrix).max(axis=0).astype(np.float64)
    units = matrix / np.where(peaks > 0, peaks, 1.0) * TOP
    codes = np.rint(units)
    return codes.astype(np.int64) if np.abs(units - codes).max(initial=0) < CODE_TOLERANCE else None


def k_means_per_channel(matrix: Array, clusters: int) -> Array:
    """Centroids of each channel, # (n, channels) -> (clusters, channels); fewer values repeat the last; zeros kept."""
    columns = [k_means(c, clusters, keep_zero=bool((c == 0).any())) for c in matrix.T]
    size = max(c.size for c in columns)
    return np.stack([np.pad(c, (0, size - c.size), mode="edge") for c in columns], axis=1)


def distinct(matrix: Array, *, per_channel: bool) -> int:
    """How many values a matrix has, or the channel of it that has most."""
    if not per_channel:
        return int(np.unique(matrix).size)
    return int((np.diff(np.sort(matrix, axis=0), axis=0) != 0).sum(axis=0).max(initial=0)) + 1
