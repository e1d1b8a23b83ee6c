"""Tensors of an ONNX file, without the package ``onnx``: of its protocol buffers only what weights take is read.

The numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crnet.errors import CrnetError

GRAPH, INITIALIZER = 7, 5  # of ModelProto, of GraphProto
DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA = 1, 2, 4, 8, 9  # of TensorProto
FLOAT = 1  # a data type
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def read(path: Path) -> dict[str, Tensor]:
    """Name -> float32 tensor of each initializer that is one; others are passed over.

    Raises:
        CrnetError: The file is no ONNX file, is cut short, or is absent.
    """
    try:
        content = memoryview(path.read_bytes())
        graphs = [graph for number, graph in _fields(content) if number == GRAPH]
        tensors = [_tensor(each) for graph in graphs for number, each in _fields(graph) if number == INITIALIZER]
    except OSError as error:
        raise CrnetError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, IndexError, TypeError) as error:
        raise CrnetError(f"{path}: is no ONNX file, or is cut short ({error}); fetch it again.") from error
    found = dict(filter(None, tensors))
    if not found:
        raise CrnetError(f"{path}: is no ONNX file with weights; fetch it again.")
    return found


def _tensor(message: memoryview) -> tuple[str, Tensor] | None:
    dims, kind, name, values = [], None, "", b""
    for number, value in _fields(message):
        if number == DIMS:  # one by one, or packed
            dims += [value] if isinstance(value, int) else _varints(value)
        elif number == DATA_TYPE:
            kind = value
        elif number == NAME:
            name = bytes(value).decode()
        elif number in (FLOAT_DATA, RAW_DATA):  # little-endian in both; of FLOAT_DATA also one by one
            values += bytes(value)
    if kind != FLOAT:
        return None
    if len(values) != 4 * prod(dims):
        raise ValueError(f"{name} has {len(values)} bytes for the shape {dims}")
    return name, torch.from_numpy(np.frombuffer(values, "<f4").astype(np.float32).reshape(dims))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message: an integer, or bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, place = _varint(message, place)
        else:
            if wire == BYTES:
                size, place = _varint(message, place)
            elif wire in (FIXED64, FIXED32):
                size = 8 if wire == FIXED64 else 4
            else:
                raise ValueError(f"wire type {wire}")
            value, place = message[place : place + size], place + size
            if place > len(message):
                raise ValueError(f"field {number} goes beyond the end")
        yield number, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, the lowest first; and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("an integer is too long")


def _varints(message: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(message):
        value, place = _varint(message, place)
        values.append(value)
    return values
