"""Mutants of exported files, and the child process that opens them: `make` writes them, `main` opens them.

A crash of a library would end the process that opens the file, so the child says after each file how it ended.
"""

import io
import json
import resource
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PER_KIND = 25
HUGE = 2**40
_LONGEST_S = 60
_MOST_MEMORY_BYTES = 24 << 30  # of address space: torch alone maps 10


def make(folder: Path, sources: dict[str, Path], outside: Path) -> Iterator[Path]:
    """Write mutants to ``folder`` and yield their paths; names are ``<format>-<kind>-<number>.<ending>``.

    Args:
        folder: for them.
        sources: format (onnx, pt, golden, nir) -> an intact file.
        outside: a file that no mutant may reach; those that point out of the folder point there.
    """
    for form, source in sources.items():
        content = source.read_bytes()
        for index, kind in enumerate(KINDS):
            for number in range(PER_KIND):
                rng = np.random.default_rng([index, number])
                path = folder / f"{form}-{kind}-{number}{source.suffix}"
                path.write_bytes(KINDS[kind](form, content, rng, number, outside, folder))
                yield path


def _truncated(_form: str, content: bytes, rng: Any, *_: Any) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def _flipped(_form: str, content: bytes, rng: Any, number: int, *_: Any) -> bytes:
    """One to eight bits; half of the mutants in the first or last 2 KiB, where headers are."""
    changed = bytearray(content)
    span = len(changed) if number % 2 else 2048
    for place in rng.integers(0, min(span, len(changed)), int(rng.integers(1, 9))):
        place = int(place) - (len(changed) if number % 4 == 0 else 0)
        changed[place % len(changed)] ^= 1 << int(rng.integers(0, 8))
    return bytes(changed)


def _wrong_shapes(form: str, content: bytes, rng: Any, number: int, *_: Any) -> bytes:
    return _SHAPES[form](content, rng, number, lambda size: max(1, size + int(rng.integers(-3, 9))))


def _huge_dims(form: str, content: bytes, rng: Any, number: int, *_: Any) -> bytes:
    sizes = (HUGE, 2**62, 2**31, 2**33, -1)
    return _SHAPES[form](content, rng, number, lambda _: sizes[number % len(sizes)])


def _escaping(
    form: str, content: bytes, rng: Any, number: int, outside: Path, folder: Path
) -> bytes:
    ways = [f"../{outside.name}", str(outside), f"./x/../../{outside.name}", f"link-{number}"]
    way = ways[number % len(ways)]
    link = folder / f"link-{number}"
    if way == link.name and not link.exists():
        link.symlink_to(outside)
    return _ESCAPES[form](content, rng, way, outside)


Resize = Callable[[int], int]
KINDS: dict[str, Callable[..., bytes]] = {
    "truncated": _truncated,
    "flipped": _flipped,
    "shapes": _wrong_shapes,
    "huge": _huge_dims,
    "escaping": _escaping,
}


def _onnx_shapes(content: bytes, rng: Any, number: int, resize: Resize) -> bytes:
    """Of a weight, an input, or a shape in the metadata."""
    import onnx

    model = onnx.load_from_string(content)
    if number % 3 == 0:
        tensors = [one for one in model.graph.initializer if one.dims]
        tensor = tensors[int(rng.integers(len(tensors)))]
        tensor.dims[0] = resize(tensor.dims[0])
    elif number % 3 == 1:
        inputs = model.graph.input
        dims = inputs[int(rng.integers(len(inputs)))].type.tensor_type.shape.dim
        dims[-1].dim_value = resize(dims[-1].dim_value)
    else:
        for entry in model.metadata_props:
            if entry.key == "states":
                states = json.loads(entry.value)
                states[0]["shape"][0] = resize(states[0]["shape"][0])
                entry.value = json.dumps(states)
    return model.SerializeToString()


def _onnx_escapes(content: bytes, rng: Any, way: str, outside: Path) -> bytes:
    """A weight that lies elsewhere; it is there, so a reader that follows the path would be content."""
    import onnx

    model = onnx.load_from_string(content)
    tensors = [one for one in model.graph.initializer if len(one.raw_data) > 64]
    tensor = tensors[int(rng.integers(len(tensors)))]
    length = len(tensor.raw_data)
    assert length <= outside.stat().st_size
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", way), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


def _rezipped(content: bytes, change: Callable[[str, bytes], tuple[str, bytes]]) -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(found, "w") as new:
        for name in old.namelist():
            new.writestr(*change(name, old.read(name)))
    return found.getvalue()


def _pt_shapes(content: bytes, rng: Any, number: int, resize: Resize) -> bytes:
    """Sizes in the metadata."""

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if not name.endswith("revedge.json"):
            return name, data
        told = json.loads(data)
        place, key = (
            (told["states"][int(rng.integers(len(told["states"])))]["shape"], 0),
            (told["input"]["shape"], 0),
            (told, "timesteps"),
        )[number % 3]
        value = resize(int(place[key]))
        place[key] = value if number % 2 else [value, "x"]
        return name, json.dumps(told).encode()

    return _rezipped(content, change)


def _pt_escapes(content: bytes, _rng: Any, way: str, _outside: Path) -> bytes:
    """An entry of the archive whose name leads out of it."""
    return _rezipped(
        content, lambda name, data: (way if name.endswith("constants.pkl") else name, data)
    )


def _golden_shapes(content: bytes, rng: Any, number: int, resize: Resize) -> bytes:
    """A header that claims another size than its data have; or steps that do."""
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    hit = names[int(rng.integers(len(names)))]

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if name != hit:
            return name, data
        array = np.load(io.BytesIO(data))
        if name == "about.npy":
            about = json.loads(bytes(array))
            key = ("steps", "batch", "state_steps")[number % 3]
            about[key] = resize(about[key])
            array = np.frombuffer(json.dumps(about).encode(), np.uint8)
            shape = array.shape
        else:
            shape = (resize(array.shape[0]), *array.shape[1:])
        header = io.BytesIO()
        claim = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, claim)
        return name, header.getvalue() + array.tobytes()

    return _rezipped(content, change)


def _golden_escapes(content: bytes, rng: Any, way: str, _outside: Path) -> bytes:
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    hit = names[int(rng.integers(len(names)))]
    return _rezipped(content, lambda name, data: (f"{way}.npy" if name == hit else name, data))


def _in_hdf5(content: bytes, change: Callable[[Any], None]) -> bytes:
    import h5py  # type: ignore[import-untyped,unused-ignore]

    found = io.BytesIO(content)
    with h5py.File(found, "r+") as file:
        change(file)
    return found.getvalue()


def _datasets(file: Any) -> list[str]:
    import h5py  # type: ignore[import-untyped,unused-ignore]

    names: list[str] = []
    file.visititems(lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) else None)
    return sorted(name for name in names if file[name].shape and file[name].dtype.kind == "f")


def _nir_shapes(content: bytes, rng: Any, _number: int, resize: Resize) -> bytes:
    """An array of another size; a huge one takes no place in the file, HDF5 fills it in when it is read."""

    def change(file: Any) -> None:
        names = _datasets(file)
        name = names[int(rng.integers(len(names)))]
        shape = (min(2**50, abs(resize(file[name].shape[0]))), *file[name].shape[1:])
        del file[name]
        file.create_dataset(name, shape=shape, dtype="f4", fillvalue=0.5)

    return _in_hdf5(content, change)


def _nir_escapes(content: bytes, rng: Any, way: str, outside: Path) -> bytes:
    """A link to another file, or an array whose bytes lie in one."""
    import h5py  # type: ignore[import-untyped,unused-ignore]

    def change(file: Any) -> None:
        names = _datasets(file)
        name = names[int(rng.integers(len(names)))]
        shape = file[name].shape
        del file[name]
        if rng.integers(2):
            file[name] = h5py.ExternalLink(way, "/x")
        else:
            where = [(way, 0, outside.stat().st_size)]
            file.create_dataset(name, shape=shape, dtype="f4", external=where)

    return _in_hdf5(content, change)


_SHAPES: dict[str, Callable[..., bytes]] = {
    "onnx": _onnx_shapes,
    "pt": _pt_shapes,
    "golden": _golden_shapes,
    "nir": _nir_shapes,
}
_ESCAPES: dict[str, Callable[..., bytes]] = {
    "onnx": _onnx_escapes,
    "pt": _pt_escapes,
    "golden": _golden_escapes,
    "nir": _nir_escapes,
}


def _open(path: Path, model: Path) -> None:
    """Do with a file what a user does with it."""
    if path.name.startswith("golden-"):
        from revedge.export.golden_check import check_golden

        check_golden(model, path)
    elif path.suffix == ".onnx":
        from revedge.export.runner import StreamRunner

        runner = StreamRunner(path)
        runner.reset(1)
        runner.step(np.zeros((1, *runner.manifest.in_shape), np.float32))
    elif path.suffix == ".pt":
        from revedge.export.torchscript import read_torchscript

        read_torchscript(path)
    else:
        from revedge.export.nir_import import read_nir

        read_nir(path)


def main() -> None:
    """Open every file of a list; write its name and how that ended to a file."""
    from revedge.errors import RevedgeError

    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    model = Path(sys.argv[1])
    ends = open(sys.argv[3], "w", encoding="utf-8", buffering=1)  # noqa: SIM115, as long as the process
    for line in Path(sys.argv[2]).read_text().splitlines():
        path = Path(line)
        signal.alarm(_LONGEST_S)  # ends the process: a hang is a crash
        try:
            _open(path, model)
            end = "passed"
        except RevedgeError as error:
            text = str(error)
            end = "refused" if text and "\n" not in text and len(text) < 1000 else f"told {text!r}"
        except Exception as error:  # what the test is there to find
            end = f"{type(error).__name__}: {str(error)[:100]!r}"
        print(path.name, end, sep="\t", file=ends)


if __name__ == "__main__":
    main()
