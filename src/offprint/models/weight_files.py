"""Files of weights, opened without running anything that they hold.

A safetensors file is plain data. A torch file is a pickle, and a pickle is a program: it names classes and functions to call.
torch reads one that names only tensors and plain values. Training scripts leave more beside the weights (options, optimizers,
numbers of NumPy, whole modules), so a file that torch refuses is read here a second time by an unpickler that looks nothing up:
every class or function that the file names becomes a :class:`Leftover`, which does nothing, and tensors come only from torch's
own records of storages.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprint.errors import CheckpointError
from offprint.files import fetched

_BROKEN = (
    RuntimeError, EOFError, zipfile.BadZipFile, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError, MemoryError,
    OverflowError, NotImplementedError, pickle.UnpicklingError,
)  # fmt: skip
_TEXTS = (  # how a file begins that is no weight file: what it is, and what to do
    (rb"version https://git-lfs", "a Git LFS pointer, not the file it points to", "run `git lfs pull` in its repository"),
    (rb"(?i)\s*<(!doctype\s+html|html|head|body)\b", "a web page (a login, an error or a redirect), not the file that was asked for",
     "open its address in a browser and download the file itself"),
    (rb"\s*<\?xml", "an XML text, such as an error of the server", "download the file again, and look at what this one says"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf", "a compressed archive", "unpack it and give the file inside"),
    (rb"\x89HDF\r\n", "an HDF5 file (Keras)", "convert it to safetensors"),
)  # fmt: skip


def _is_text(head: bytes) -> bool:
    """Whether these first bytes are words: UTF-8 (but for a cut last letter) without control characters."""
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) > len(head) - 4 and all(c.isprintable() or c in "\t\r\n" for c in text)


def _refuse(path: Path, head: bytes, size: int) -> None:
    """Refuse what is no weight file, by the name of what it is."""
    if not size:
        raise CheckpointError(
            f"{path} is empty (0 bytes): its download or copy did not happen; delete it and fetch it again"
        )
    for pattern, what, advice in _TEXTS:
        if re.match(pattern, head.removeprefix(b"\xef\xbb\xbf")):
            raise CheckpointError(f"{path} is {what} ({size:,} bytes); {advice}")
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is a truncated or damaged zip archive ({size:,} bytes): its table of contents, which stands at the end, is "
            "not there; fetch it again"
        )
    if path.suffix != ".safetensors" and _is_text(head):
        first = head.decode("utf-8", "ignore").strip().splitlines()[:1] or [""]
        raise CheckpointError(
            f"{path} is a text, not a weight file ({size:,} bytes; it begins {first[0][:60]!r}); "
            "give a .safetensors, .pt, .pth or .bin file"
        )


def _harmless() -> list:
    """Plain values that training scripts leave beside the tensors: options, and numbers of NumPy. None of them runs anything."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # the function that rebuilds a NumPy number
    kinds = [type(np.dtype(k)) for k in ("bool", "int32", "int64", "float32", "float64")]
    return [argparse.Namespace, np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *kinds]


def _unpacked(path: Path) -> Path | io.BytesIO:
    """The path itself, or the one weight file inside of a zip archive (a torch file is an archive with a ``data.pkl``)."""
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(n.rsplit("/", 1)[-1] == "constants.pkl" for n in names):
            raise CheckpointError(
                f"{path} is a TorchScript program, which would run code when opened; it was not. Save its state dict in an "
                "environment you trust: torch.save(torch.jit.load(FILE).state_dict(), ...)"
            )
        if any(n.rsplit("/", 1)[-1] == "data.pkl" for n in names):
            return path
        inside = [n for n in names if n.endswith((".pt", ".pth", ".bin")) and not n.startswith("__MACOSX")]
        if len(inside) != 1:
            raise CheckpointError(
                f"{path} is an archive of {len(names)} files, {len(inside)} of them weight files ({', '.join(inside[:4]) or '-'}); "
                "unpack it and give the file you mean"
            )
        return io.BytesIO(archive.read(inside[0]))


def read_file(path: str | Path) -> dict:
    """Open a weight file (safetensors, or a torch file) without running anything from it.

    A zip archive with one torch file inside is opened as that file. What a torch file holds beside tensors and plain values is
    given as :class:`Leftover`.

    Raises:
        CheckpointError: no such file; an empty, truncated or damaged one; something else than a weight file; a file without
            tensors that would run code when opened.
    """
    path = fetched(path, "the weight file")
    if not path.is_file():
        raise CheckpointError(
            f"no weight file at {str(path)!r}; give the path of a .safetensors, .pt, .pth or .bin file"
        )
    with path.open("rb") as stream:
        head = stream.read(512)
    size = path.stat().st_size
    _refuse(path, head, size)
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged or truncated ({size:,} bytes): {error}; fetch it again"
            ) from error
    try:
        source = _unpacked(path)
        try:
            with torch.serialization.safe_globals(_harmless()):
                return torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            found, named = _read_inert(source)
    except CheckpointError:
        raise
    except (*_BROKEN, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is damaged, truncated or not a weight file ({size:,} bytes): {reason}; fetch it again"
        ) from error
    if not holds_tensors(found):
        raise CheckpointError(
            f"{path} holds no tensors, and would run code when opened ({', '.join(named[:4])}); it was not loaded. "
            "Save the model's state dict, or convert it to safetensors in an environment you trust"
        )
    return found


def holds_tensors(value: object, depth: int = 4) -> bool:
    """Whether a tensor lies in these mappings, at most ``depth`` levels down."""
    if isinstance(value, Mapping) and depth:
        return any(holds_tensors(v, depth - 1) for v in value.values())
    return isinstance(value, Tensor)


# -- the unpickler that looks nothing up -----------------------------------------------------------------------------
class _Fixed(type):
    """Classes that a pickle cannot change."""

    def __setattr__(cls, name, value):
        raise pickle.UnpicklingError("the file tries to change a class")


class Leftover(metaclass=_Fixed):
    """Stands for an object of a class that was not imported: nothing was called, and its contents are not kept.

    ``origin`` is the class or function that the file names.
    """

    origin = ""

    def __init__(self, *args, **kwargs):
        self.__dict__["state"], self.__dict__["items"] = None, {}

    def __new__(cls, *args, **kwargs):
        made = object.__new__(cls)
        made.__init__()
        return made

    def __setstate__(self, state) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key, value) -> None:
        self.__dict__["items"][key] = value

    def append(self, value) -> None: ...

    def extend(self, values) -> None: ...

    def add(self, value) -> None: ...

    def __repr__(self) -> str:
        return f"<{self.origin}, not built>"


class _Plain(dict):
    """A mapping whose attributes a pickle cannot set."""

    def __setstate__(self, state) -> None: ...


class _Storage:
    """Numbers that lie elsewhere in the file."""

    __slots__ = ("dtype", "key", "numel")

    def __init__(self, dtype: torch.dtype, key: str, numel: int):
        self.dtype, self.key, self.numel = dtype, key, numel

    def __setstate__(self, state) -> None:
        raise pickle.UnpicklingError("a storage has no state")


class _View:
    """A tensor as it is written: a storage, and where in it the tensor lies."""

    __slots__ = ("dtype", "offset", "size", "storage", "stride")

    def __init__(self, storage, offset, size, stride, dtype=None):
        self.storage, self.offset, self.size, self.stride, self.dtype = storage, offset, size, stride, dtype

    def __setstate__(self, state) -> None: ...

    def tensor(self, read: Callable[[_Storage], Tensor]) -> Tensor:
        """The tensor itself, checked against its storage."""
        numbers = (self.offset, *self.size, *self.stride)
        if type(self.storage) is not _Storage or not all(type(n) is int and n >= 0 for n in numbers):
            raise pickle.UnpicklingError("a tensor without storage, or with an impossible shape")
        flat = read(self.storage)
        flat = flat if self.dtype is None else flat.view(self.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if 0 not in self.size and last >= len(flat):
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(self.size)} reaches beyond its storage")
        return flat.as_strided(tuple(self.size), tuple(self.stride), self.offset)


class _Call:
    """The few functions of a torch file that are done here, in their plain form."""

    __slots__ = ("do",)

    def __init__(self, do: Callable):
        object.__setattr__(self, "do", do)

    def __call__(self, *args):
        return self.do(*args)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError("the file tries to change a function")

    def __setstate__(self, state) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _from_type(call, kind, args, state):
    if type(call) is not _Call:
        raise pickle.UnpicklingError("a tensor that is made by an unknown function")
    return call(*args)


_CALLS = {
    ("collections", "OrderedDict"): _Call(lambda *args: _Plain(*args)),
    ("torch", "Size"): _Call(lambda *args: tuple(*args)),
    ("torch._utils", "_rebuild_tensor"): _Call(_View),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(lambda *a: _View(*a[:4])),
    ("torch._utils", "_rebuild_tensor_v3"): _Call(lambda *a: _View(a[0], a[1], a[2], a[3], a[6])),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *_: data),
    ("torch._utils", "_rebuild_parameter_with_state"): _Call(lambda data, *_: data),
    ("torch._tensor", "_rebuild_from_type_v2"): _Call(_from_type),
}
_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
_STORAGES = {("torch", f"{name}Storage"): dtype for name, dtype in _DTYPES.items()}
_STORAGES[("torch.storage", "UntypedStorage")] = torch.uint8


class _Inert(pickle.Unpickler):
    """Names become leftovers, storages records of where they lie."""

    def __init__(self, stream):
        super().__init__(stream)
        self.kinds: dict[tuple[str, str], Any] = {}
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str):
        where = (module, name)
        if where in _CALLS:
            return _CALLS[where]
        if where in _STORAGES:
            return _STORAGES[where]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if where not in self.kinds:
            self.kinds[where] = _Fixed("Leftover", (Leftover,), {"origin": f"{module}.{name}"})
        return self.kinds[where]

    def persistent_load(self, pid):
        if type(pid) is tuple and len(pid) > 1 and pid[0] == "module" and type(pid[1]) is _Fixed:
            return pid[1]  # a class, with its source beside it
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("a reference that is no storage of torch")
        if type(pid[4]) is not int or pid[4] < 0:
            raise pickle.UnpicklingError("a storage of impossible size")
        return self.storages.setdefault(str(pid[2]), _Storage(pid[1], str(pid[2]), pid[4]))


_LEVELS = 100  # of nesting; what lies deeper is no weight
_Deeper = _Fixed("Leftover", (Leftover,), {"origin": f"something under more than {_LEVELS} levels"})


def _plain(value, read: Callable[[_Storage], Tensor], seen: dict[int, Any], levels: int = _LEVELS):
    """What was read, with tensors in the place of their records, and mappings, whole modules and leftovers as plain values."""
    if id(value) in seen:
        return seen[id(value)]
    if not levels:
        return _Deeper()
    if isinstance(value, _View):
        out: Any = value.tensor(read)
    elif isinstance(value, Leftover):
        state, items = value.__dict__["state"], value.__dict__["items"]
        if isinstance(state, dict) and isinstance(state.get("_parameters"), dict):
            out = seen[id(value)] = {}  # a module that was pickled whole
            for group in ("_parameters", "_buffers", "_modules"):
                for name, inner in dict(state.get(group) or {}).items():
                    made = _plain(inner, read, seen, levels - 1)
                    out |= {f"{name}.{k}": v for k, v in made.items()} if isinstance(made, dict) else {name: made}
            out = {k: v for k, v in out.items() if isinstance(v, Tensor)}
        elif items:
            out = seen[id(value)] = {}
            out |= {_key(k): _plain(v, read, seen, levels - 1) for k, v in items.items()}
        else:
            out = type(value)()
    elif isinstance(value, dict):
        out = seen[id(value)] = {}
        out |= {_key(k): _plain(v, read, seen, levels - 1) for k, v in value.items()}
    elif isinstance(value, list):
        out = seen[id(value)] = []
        out.extend(_plain(v, read, seen, levels - 1) for v in value)
    elif isinstance(value, tuple):
        out = tuple(_plain(v, read, seen, levels - 1) for v in value)
    else:
        out = value if isinstance(value, str | int | float | complex | bool | bytes | None) else repr(value)
    seen[id(value)] = out
    return out


def _key(key: object) -> str | int:
    return key if isinstance(key, str | int) else repr(key)


def _read_inert(source: Path | io.BytesIO) -> tuple[Any, list[str]]:
    """What a torch file holds, and the names of classes and functions that were not looked up."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
    if zipfile.is_zipfile(source):
        return _read_zip(source)
    stream = source if isinstance(source, io.BytesIO) else io.BytesIO(source.read_bytes())
    stream.seek(0)
    return _read_legacy(stream)


def _flat(data: bytes, storage: _Storage) -> Tensor:
    """The numbers of a storage; its size must be what the pickle says."""
    if storage.numel == 0:
        return torch.empty(0, dtype=storage.dtype)
    if len(data) < storage.numel * torch.empty((), dtype=storage.dtype).element_size():
        raise pickle.UnpicklingError(
            f"storage {storage.key} has {len(data)} bytes, too few for {storage.numel} numbers"
        )
    return torch.frombuffer(bytearray(data), dtype=storage.dtype, count=storage.numel)


def _read_zip(source: Path | io.BytesIO) -> tuple[Any, list[str]]:
    with zipfile.ZipFile(source) as archive:
        (pickled,) = (n for n in archive.namelist() if n.rsplit("/", 1)[-1] == "data.pkl")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("the file was written on a big-endian machine")
        inert = _Inert(io.BytesIO(archive.read(pickled)))
        whole, flat = inert.load(), {}

        def read(storage: _Storage) -> Tensor:
            if storage.key not in flat:
                flat[storage.key] = _flat(archive.read(f"{root}data/{storage.key}"), storage)
            return flat[storage.key]

        return _plain(whole, read, {}), [k.origin for k in inert.kinds.values()]


def _read_legacy(stream: io.BytesIO) -> tuple[Any, list[str]]:
    """The form before torch 1.6: magic number, version and machine, the pickle, the storages' keys, the storages."""
    if _Inert(stream).load() != 0x1950A86A20F9469CFC6C:
        raise pickle.UnpicklingError("it is a pickle, but not one of torch's")
    for _ in range(2):
        _Inert(stream).load()
    inert = _Inert(stream)
    whole, keys, data = inert.load(), _Inert(stream).load(), {}
    start = stream.tell()
    view = stream.getbuffer()
    for key in keys:
        storage = inert.storages[str(key)]
        count = int.from_bytes(view[start : start + 8], "little")
        size = count * torch.empty((), dtype=storage.dtype).element_size()
        data[str(key)] = bytes(view[start + 8 : start + 8 + size])
        start += 8 + size
    flat: dict[str, Tensor] = {}

    def read(storage: _Storage) -> Tensor:
        if storage.key not in flat:
            flat[storage.key] = _flat(data[storage.key], storage)
        return flat[storage.key]

    return _plain(whole, read, {}), [k.origin for k in inert.kinds.values()]
