"""Files of strangers: 500 mutants of ONNX, TorchScript, golden and NIR files are refused in one line, or harmless."""

from pathlib import Path
from typing import Any

import hostile
import onnx
import pytest
from zoo import KINDS, Export

from revedge.errors import ExportError
from revedge.export.onnx_bytes import require_complete
from revedge.export.runner import StreamRunner


@pytest.mark.parametrize("graph", ["", ".scan"])
def test_data_beside_the_file_are_refused(exported: Export, graph: str, tmp_path: Path) -> None:
    """Also in the body of a Scan, and where onnxruntime would read them: files of revedge are complete."""
    source = exported.folder / f"model{graph}.onnx"
    require_complete(source)
    model = onnx.load(str(source))
    external: dict[str, Any] = {"save_as_external_data": True, "location": "w"}
    onnx.save(model, str(tmp_path / "beside.onnx"), size_threshold=64, **external)
    assert (tmp_path / "w").is_file()
    with pytest.raises(ExportError, match="keeps data in other files"):
        StreamRunner(tmp_path / "beside.onnx")


def test_nothing_hides_behind_bytes_that_are_skipped(exported: Export, tmp_path: Path) -> None:
    """Old group fields, that readers of protocol buffers skip and ours does not, and numbers that are too long."""
    content = (exported.folder / "model.onnx").read_bytes()
    for before in (b"\xfb\x01\xfc\x01", b"\xf8\xff\xff\xff\xff\x7f\x00", b"\x80" * 12, b""):
        path = tmp_path / "odd.onnx"
        path.write_bytes(before + (content if before else b""))
        with pytest.raises(ExportError, match=r"odd\.onnx is damaged"):
            require_complete(path)


def test_a_damaged_operator_prints_nothing(
    exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of onnxruntime whose text is no UTF-8: it would try again and say so where `--json` has its answer."""
    content = (exported.folder / "model.onnx").read_bytes()
    path = tmp_path / "odd.onnx"
    path.write_bytes(content.replace(b"Conv", b"\xaeonv", 1))
    with pytest.raises(ExportError, match=r"odd\.onnx is damaged"):
        StreamRunner(path)
    assert capsys.readouterr().out == ""


def test_mutants_are_refused_or_harmless(exported: Export, tmp_path: Path, run_python) -> None:  # type: ignore[no-untyped-def]
    """No crash, no hang, no other error than ours; nothing outside the folder is read or written."""
    pytest.importorskip("nir", reason="the extra revedge[nir] is not installed")
    from revedge.export.nir_graph import write_nir

    folder = tmp_path / "mutants"
    folder.mkdir()
    outside = tmp_path / "outside.bin"
    outside.write_bytes(bytes(1 << 16))
    before = (outside.read_bytes(), sorted(p.name for p in tmp_path.iterdir()))
    intact = {
        "onnx": exported.folder / "model.onnx",
        "pt": exported.folder / "model.step.pt",
        "golden": exported.folder / "golden.npz",
        "nir": tmp_path / "mutants" / "intact.nir",
    }
    write_nir(KINDS["lif hard"](), intact["nir"])
    paths = list(hostile.make(folder, intact, outside))
    assert len(paths) == 500
    names = folder / "names"
    names.write_text("\n".join(map(str, paths)))
    words = (hostile.__file__, str(intact["onnx"]), str(names), str(folder / "ends"))
    done = run_python(*words, OMP_NUM_THREADS="1")
    assert done.returncode == 0, (done.returncode, done.stdout[-200:], done.stderr[-2000:])
    assert done.stdout == ""  # where `--json` has its answer
    lines = (folder / "ends").read_text().splitlines()
    ends = {name: end for name, _, end in (line.partition("\t") for line in lines)}
    assert list(ends) == [path.name for path in paths]
    odd = {name: end for name, end in ends.items() if end not in ("passed", "refused")}
    assert not odd
    passed = [name.rsplit("-", 1)[0] for name, end in ends.items() if end == "passed"]
    # A bit of a weight, or of a constant that nothing depends on, is nobody's business; a way out of the folder is.
    assert not [name for name in passed if name.split("-")[1] in ("truncated", "huge")]
    assert not [name for name in passed if name in ("onnx-escaping", "nir-escaping")]
    assert (outside.read_bytes(), sorted(p.name for p in tmp_path.iterdir())) == before
    assert len(passed) < 200
