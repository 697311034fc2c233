"""How an adapter reads a record: arrays in the record's precision, and the numbers that only its words hold."""

from __future__ import annotations

import re

import golden
import torch
from torch import Tensor

NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"


def precision(record: dict) -> torch.dtype:
    """In which a record was taken, and ours is compared with it."""
    return getattr(torch, golden.dtype(record))


def array(record: dict, spec: dict) -> Tensor:
    """The array of this shape and seed."""
    return torch.from_numpy(golden.array(spec["shape"], spec["seed"]).astype(golden.dtype(record)))


def said(record: dict, words: str):
    """The number at each ``#`` of these words, which the record's notes must hold; one number, or a list of them."""
    pattern = re.escape(words).replace(r"\#", NUMBER)
    found = re.search(pattern, record["notes"])
    if found is None:
        raise ValueError(f"the notes of {record.get('case', record.get('variant'))} do not say {words!r}")
    numbers = [float(n) if re.search(r"[.e]", n) else int(n) for n in found.groups()]
    return numbers[0] if len(numbers) == 1 else numbers


def listed(record: dict, words: str) -> list[int]:
    """The list in brackets after these words in the notes."""
    found = re.search(re.escape(words) + r"\s*\[([\d, ]+)\]", record["notes"])
    if found is None:
        raise ValueError(f"the notes of {record.get('case', record.get('variant'))} list nothing after {words!r}")
    return [int(n) for n in found.group(1).split(",")]
