"""Examples for a trained model: any accepted source, in the model's own representation."""

import os
from pathlib import Path

import numpy as np

from iwae.data import arrays, registry
from iwae.data.dataset import KINDS, rescale
from iwae.errors import InputError, nearest


def read_examples(
    source: str | os.PathLike[str] | np.ndarray,
    *,
    kind: str,
    scale: float,
    shape: tuple[int, ...],
    data_dir: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Examples [n, d] in the representation of a model trained on (kind, scale, shape).

    `source`: an array or the path of one (.npy, .npz with one array, .csv), as [n, d] or
    [n, *shape] or one example without the first axis; or "NAME:split" of a registered data
    set, where "NAME" means its test split.

    For a model of intensities on a scale above 1, values all in [0, 1] are intensities, and so
    are zeros and ones of any dtype, an array of uint8 included; integers up to the scale are
    on the model's scale. The result is uint8, or float32 (still on the model's scale) when
    the intensities are no multiples of 1/scale. Raises InputError for what does not fit.
    """
    if kind not in KINDS:
        raise InputError(f"{kind!r} is not a kind of values: {nearest(kind, list(KINDS))}.")
    if isinstance(source, str) and source.partition(":")[0] in registry.NAMES:
        x = _named(source, kind, data_dir)
        return _represent(_flat(x, shape, source), kind, scale, source)
    x, where = _own(source)
    arrays.check_numbers(x, where)
    return _represent(_flat(x, shape, where), kind, scale, where)


def _named(source: str, kind: str, data_dir: str | os.PathLike[str] | None) -> np.ndarray:
    """A split of a registered data set, as intensities (float32) if the model is of such."""
    name, _, split = source.partition(":")
    dataset = registry.load_named(name, None if data_dir is None else Path(data_dir))
    x = dataset.split(split or "test")
    return x / np.float32(dataset.scale) if kind == "intensity" else x


def _own(source: str | os.PathLike[str] | np.ndarray) -> tuple[np.ndarray, str]:
    source = arrays.as_numpy(source)
    if isinstance(source, np.ndarray):
        return source, "The array"
    if not isinstance(source, str | os.PathLike):
        given = type(source).__name__
        raise InputError(f"Examples must be an array, a path or a data set's name, not a {given}.")
    path = arrays.data_path(source, registry.NAMES)
    found = arrays.read_file(path)
    if isinstance(found, dict):
        what = f"{path} holds the arrays {', '.join(found) or 'none'}, but one is expected"
        raise InputError(f"{what}: save the examples alone with np.save.")
    return found, str(path)


def _flat(x: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """[n, d] of examples whose shape the model knows; a single example becomes n = 1.

    A channel axis of 1 may be there or not; a model of vectors takes images of d pixels.
    """
    d = int(np.prod(shape))
    known = (_one_channel(shape), (d,))
    if _one_channel(x.shape[1:]) in known or (len(shape) == 1 and np.prod(x.shape[1:]) == d):
        return x.reshape(-1, d)
    if _one_channel(x.shape) in known:
        return x.reshape(1, d)
    forms = f"[n, {d}]" if len(shape) == 1 else f"[n, {d}] or [n, {', '.join(map(str, shape))}]"
    raise InputError(f"{where} has the shape {x.shape}: give examples as {forms} for this model.")


def _one_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] if len(shape) == 3 and shape[-1] == 1 else shape


def _represent(x: np.ndarray, kind: str, scale: float, where: str) -> np.ndarray:
    if kind == "real":
        return arrays.to_float32(x, where)
    low, high = x.min(), x.max()
    whole = arrays.is_whole(x)
    if kind == "binary" and whole and low >= 0 and high <= 1:
        return x.astype(np.uint8)
    if kind == "intensity" and low >= 0 and high <= 1:
        return rescale(x, scale) if scale > 1 else x.astype(np.float32)
    if kind == "intensity" and whole and low >= 0 and high <= scale:
        return x.astype(np.uint8)
    needs = "only 0 and 1" if kind == "binary" else "intensities in [0, 1]"
    needs += f" or integers in 0..{scale:g}" if kind == "intensity" and scale > 1 else ""
    what = f"{where} holds {arrays.value_range(x)}, but this model was trained on {kind} values"
    raise InputError(f"{what}: give {needs}.")
