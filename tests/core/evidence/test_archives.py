"""Packages as tar files and OCI image layouts: the same bytes each time, and nothing hostile comes out."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import GateError, ShipctlError, StoreError
from shipctl.evidence import extraction
from shipctl.evidence.archives import ARTIFACT_TYPE, opened, write_oci, write_tar

FILES = {
    "package.json": b"{}",
    "MODEL_CARD.md": b"# Card\n",
    "model/model.onnx": bytes(range(256)) * 40,
    "model/weights/part-ü.bin": b"w" * 3000,
    "evidence/gates.json": b"[]\n",
    "evidence/reports/01-x/report.json": b"{}\n",
    f"evidence/{'long' * 40}.json": b"l",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "package", FILES)


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def oci(package: Path, target: Path, **options: Any) -> Path:
    write_oci(package, target, name="digits", version="1.0.0", **options)
    return target


# -- writing and reading back ----------------------------------------------------------------------------------------


def test_folder_is_opened_as_it_is(package: Path) -> None:
    with opened(package) as folder:
        assert folder == package


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_tar_comes_back_as_it_was(package: Path, tmp_path: Path, compression: Any) -> None:
    target = tmp_path / "digits.tar"
    write_tar(package, target, compression=compression)
    assert (target.read_bytes()[:2] == b"\x1f\x8b") == (compression == "gzip")
    with opened(target) as folder:
        assert contents(folder) == FILES
    assert not folder.exists()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_oci_layout_comes_back_as_it_was(package: Path, tmp_path: Path, compression: Any) -> None:
    with opened(oci(package, tmp_path / "oci", compression=compression)) as folder:
        assert contents(folder) == FILES


def test_layout_in_a_tar_comes_back_as_it_was(package: Path, tmp_path: Path) -> None:
    write_tar(oci(package, tmp_path / "oci"), tmp_path / "oci.tar")
    with opened(tmp_path / "oci.tar") as folder:
        assert contents(folder) == FILES


@pytest.mark.parametrize("what", [".", "package"])
def test_tar_made_by_tar_is_opened(package: Path, tmp_path: Path, what: str) -> None:
    """With `./` before each name, or with the folder itself; GNU's own format for long names."""
    where = package if what == "." else package.parent
    subprocess.run(["tar", "-C", where, "--format=gnu", "-czf", tmp_path / "by-tar.tgz", what], check=True)
    with opened(tmp_path / "by-tar.tgz") as folder:
        assert contents(folder) == FILES


def test_package_that_has_files_named_like_a_layout_is_a_package(package: Path) -> None:
    lay_out(package, {"oci-layout": b"{}", "index.json": b"{}"})
    with opened(package) as folder:
        assert folder == package


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_same_files_give_the_same_bytes(tmp_path: Path, compression: Any) -> None:
    """Whatever their times, modes and order of creation."""
    first = lay_out(tmp_path / "a", FILES)
    second = lay_out(tmp_path / "b", dict(reversed(FILES.items())))
    for path in second.rglob("*.json"):
        path.chmod(0o600)
        os.utime(path, (1, 1))
    for name, folder in (("1", first), ("2", second)):
        write_tar(folder, tmp_path / f"{name}.tar", compression=compression)
        oci(folder, tmp_path / f"oci-{name}", compression=compression)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert contents(tmp_path / "oci-1") == contents(tmp_path / "oci-2")


def test_tar_holds_no_owner_time_or_mode(package: Path, tmp_path: Path) -> None:
    write_tar(package, tmp_path / "t.tar")
    with tarfile.open(tmp_path / "t.tar") as tar:
        members = tar.getmembers()
    assert [item.name for item in members] == sorted(FILES)
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode, m.type) for m in members} == {
        (0, 0, "", "", 0, 0o644, tarfile.REGTYPE)
    }


def test_layout_has_a_layer_per_part_and_a_config_that_names_them(package: Path, tmp_path: Path) -> None:
    root = oci(package, tmp_path / "oci", licenses="MIT", description="Reads digits.", vendor="vision-team")
    [entry] = json.loads((root / "index.json").read_bytes())["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "1.0.0"}
    assert entry["artifactType"] == ARTIFACT_TYPE
    blobs = {path.name: path.read_bytes() for path in (root / "blobs" / "sha256").iterdir()}
    assert all(hashlib.sha256(body).hexdigest() == name for name, body in blobs.items())
    manifest = json.loads(blobs[entry["digest"].removeprefix("sha256:")])
    assert manifest["artifactType"] == ARTIFACT_TYPE
    assert manifest["annotations"] == {
        "org.opencontainers.image.title": "digits", "org.opencontainers.image.version": "1.0.0",
        "org.opencontainers.image.licenses": "MIT", "org.opencontainers.image.description": "Reads digits.",
        "org.opencontainers.image.vendor": "vision-team",
    }  # fmt: skip
    titles = [layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]]
    assert titles == ["package", "evidence", "model"]
    config = json.loads(blobs[manifest["config"]["digest"].removeprefix("sha256:")])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert all(
        len(blobs[item["digest"].removeprefix("sha256:")]) == item["size"] for item in manifest["layers"]
    )


def test_second_version_shares_the_layers_that_are_the_same(package: Path, tmp_path: Path) -> None:
    first = set(contents(oci(package, tmp_path / "one")))
    (package / "MODEL_CARD.md").write_bytes(b"# Another card\n")
    second = set(contents(oci(package, tmp_path / "two")))
    assert len(second - first) == 3  # the layer of single files, the config, the manifest


def test_version_with_a_plus_has_a_tag_without(package: Path, tmp_path: Path) -> None:
    write_oci(package, tmp_path / "oci", name="digits", version="1.0.0+cpu.1")
    [entry] = json.loads((tmp_path / "oci" / "index.json").read_bytes())["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "1.0.0_cpu.1"}


def test_folder_with_a_link_is_not_archived(package: Path, tmp_path: Path) -> None:
    (package / "model" / "link").symlink_to("/etc/passwd")
    with pytest.raises(StoreError) as caught:
        write_tar(package, tmp_path / "t.tar")
    assert str(caught.value) == (
        f"{package}/model/link is neither a file nor a folder; a package has nothing else, so copy what it points to"
    )
    assert not (tmp_path / "t.tar").exists()


def test_empty_folder_is_not_archived(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="has no files, so there is nothing to archive"):
        write_tar(tmp_path / "empty", tmp_path / "t.tar")


def test_layout_is_not_written_over_another(package: Path, tmp_path: Path) -> None:
    oci(package, tmp_path / "oci")
    with pytest.raises(StoreError, match="is not empty; name a folder that does not exist yet"):
        oci(package, tmp_path / "oci")


# -- skopeo ----------------------------------------------------------------------------------------------------------

needs_skopeo = pytest.mark.skipif(
    shutil.which("skopeo") is None, reason="skopeo is not installed: apt install skopeo"
)


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_skopeo
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_skopeo_inspects_the_layout(package: Path, tmp_path: Path, compression: Any) -> None:
    root = oci(package, tmp_path / "oci", compression=compression, licenses="MIT")
    found = json.loads(skopeo("inspect", f"oci:{root}:1.0.0"))
    assert found["Labels"]["org.opencontainers.image.title"] == "digits"
    assert found["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    assert len(found["Layers"]) == 3
    [entry] = json.loads((root / "index.json").read_bytes())["manifests"]
    assert found["Digest"] == entry["digest"]


@needs_skopeo
@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_copy_by_skopeo_is_the_same_package(package: Path, tmp_path: Path, transport: str) -> None:
    """With the digest kept, and into a folder of blobs (`dir:`) as well."""
    root = oci(package, tmp_path / "oci")
    skopeo("copy", "--preserve-digests", f"oci:{root}:1.0.0", f"{transport}:{tmp_path / 'copy'}:1.0.0")
    with opened(tmp_path / "copy") as folder:
        assert contents(folder) == FILES
    skopeo("copy", "--preserve-digests", f"oci:{root}:1.0.0", f"dir:{tmp_path / 'dir'}")
    assert (tmp_path / "dir" / "manifest.json").is_file()


# -- hostile archives ------------------------------------------------------------------------------------------------


def entry(name: str, body: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, body


def tar_of(entries: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, body in entries:
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


GOOD = entry("package.json", b"{}")
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "absolute": (lambda: tar_of([entry("/etc/x")]), "the name '/etc/x' leads out of the package"),
    "parent": (lambda: tar_of([GOOD, entry("model/../../x")]), "the name 'model/../../x' leads out of the package"),
    "only-parent": (lambda: tar_of([entry("..")]), "the name '..' leads out of the package"),
    "empty-part": (lambda: tar_of([entry("a//b")]), "the name 'a//b' leads out of the package"),
    "symbolic-link": (
        lambda: tar_of([entry("model", b"", type=tarfile.SYMTYPE, linkname="/etc"), entry("model/passwd")]),
        "'model' is a link to '/etc'; a package has plain files only",
    ),
    "hard-link": (
        lambda: tar_of([GOOD, entry("again", b"", type=tarfile.LNKTYPE, linkname="package.json")]),
        "'again' is a link to 'package.json'; a package has plain files only",
    ),
    "device": (
        lambda: tar_of([entry("null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)]),
        "'null' is a device; a package has plain files only",
    ),
    "pipe": (
        lambda: tar_of([entry("pipe", b"", type=tarfile.FIFOTYPE)]),
        "'pipe' is a device; a package has plain files only",
    ),
    "twice": (lambda: tar_of([GOOD, GOOD]), "'package.json' is in it twice"),
    "twice-by-dot": (lambda: tar_of([GOOD, entry("./package.json")]), "'package.json' is in it twice"),
    "file-and-folder": (
        lambda: tar_of([entry("model"), entry("model/x")]),
        "'model' is in it twice, as a file and as a folder",
    ),
    "folder-and-file": (
        lambda: tar_of([entry("model/x"), entry("model")]),
        "'model' is in it twice",
    ),
    "control-characters": (
        lambda: tar_of([entry("model/\x1b[2J")]),
        "the name 'model/\\x1b[2J' has control characters",
    ),
    "not-utf-8": (
        lambda: tar_of([entry("model/\udcff")], tarfile.GNU_FORMAT),
        "the name 'model/\\udcff' is not UTF-8",
    ),
    "long-name": (
        lambda: tar_of([entry("n" * 1025)]),
        f"a name in it has 1025 bytes, more than 1024: '{'n' * 40}'…",
    ),
    "whiteout": (lambda: tar_of([entry("model/.wh.model.onnx")]), "'model/.wh.model.onnx' is a mark to delete a file"),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gzip"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tar_is_refused(tmp_path: Path, case: str, packed: bool) -> None:
    make, why = HOSTILE[case]
    path = tmp_path / "hostile.tar"
    path.write_bytes(gzip.compress(make()) if packed else make())
    with pytest.raises(GateError) as caught, opened(path):
        pass
    assert str(caught.value) == f"{path} is refused: {why}"
    assert sorted(tmp_path.iterdir()) == [path]


def test_hostile_layer_is_refused(package: Path, tmp_path: Path) -> None:
    """With a digest that is right: who made it made the digest too."""
    root = with_layers(oci(package, tmp_path / "oci"), [tar_of([entry("../x")])])
    with (
        pytest.raises(GateError, match=r"is refused: the name '\.\./x' leads out of the package"),
        opened(root),
    ):
        pass


def test_layer_cannot_hide_a_file_of_another(package: Path, tmp_path: Path) -> None:
    root = with_layers(
        oci(package, tmp_path / "oci"), [tar_of([GOOD]), tar_of([entry("package.json", b"[]")])]
    )
    with pytest.raises(GateError, match=r"'package\.json' is in it twice"), opened(root):
        pass


def test_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "SMALL", 1 << 20)
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(tar_of([GOOD, entry("model/zeros", bytes(8 << 20))])))
    with pytest.raises(GateError) as caught, opened(path):
        pass
    assert str(caught.value) == (
        f"{path} is refused: it unpacks to more than 200 times its own size; "
        "unpack it by hand if you trust who made it, and give the folder"
    )


def test_bomb_in_a_layer_is_refused_whatever_size_it_says(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SMALL", 1 << 20)
    bomb = gzip.compress(tar_of([GOOD, entry("model/zeros", bytes(8 << 20))]))
    root = with_layers(oci(package, tmp_path / "oci", compression="gzip"), [bomb], said=1 << 40)
    with pytest.raises(GateError, match="it unpacks to more than 200 times its own size"), opened(root):
        pass


def test_bomb_of_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "MAX_FILES", 10)
    path = tmp_path / "many.tar"
    path.write_bytes(tar_of(entry(f"d{n}", b"", type=tarfile.DIRTYPE) for n in range(11)))
    with pytest.raises(GateError, match="it has more than 10 entries"), opened(path):
        pass


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """Return a tar header by hand, with any text for its size."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124 : 124 + len(size)], block[136:148] = size, b"00000000000\0"
    block[148:156], block[156:157], block[257:265] = b" " * 8, kind, b"ustar\x0000"
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def octal(size: int) -> bytes:
    return f"{size:011o}\0".encode()


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "no-tar": (lambda: b"hello, this is no tar" * 100, "a header in it is damaged (invalid header)"),
    "empty": (lambda: b"", "it ends in the middle"),
    "cut-in-a-file": (lambda: tar_of([entry("a", b"x" * 5000)])[:2000], "unexpected end of data"),
    "cut-between-files": (lambda: tar_of([entry("a"), entry("b")])[:1024], "it ends in the middle"),
    "size-too-large": (lambda: header("a", octal(1 << 33)) + bytes(512), "unexpected end of data"),
    "size-too-small": (
        lambda: header("a", octal(10)) + b"x" * 2048 + bytes(1024), "a header in it is damaged (invalid header)"
    ),
    "size-negative": (
        lambda: header("a", b"\xff" * 4 + struct.pack(">q", -512)) + bytes(1024), "a size in it is negative"
    ),
    "long-extended-header": (
        lambda: header("x", octal(1 << 20), b"x") + bytes(1 << 20), "it has an extended header of 1048576 bytes"
    ),
    "long-name-header": (
        lambda: header("x", octal(1 << 20), b"L") + bytes(1 << 20), "it has an extended header of 1048576 bytes"
    ),
    "sparse": (
        lambda: header("a", octal(512), b"S") + bytes(1024), "a file in it is sparse, which no package has"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_tar_is_refused(tmp_path: Path, case: str) -> None:
    make, why = DAMAGED[case]
    path = tmp_path / "damaged.tar"
    path.write_bytes(make())
    with pytest.raises(StoreError) as caught, opened(path):
        pass
    assert str(caught.value) == f"{path} cannot be read: {why}; get it again"


def test_endless_row_of_extended_headers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.tar"
    path.write_bytes((header("x", octal(0), b"x")) * 5000 + bytes(1024))
    with pytest.raises(ShipctlError, match="cannot be read"), opened(path):
        pass


def test_cut_gzip_is_refused(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.tar.gz"
    write_tar(package, path, compression="gzip")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(StoreError, match="cannot be read"), opened(path):
        pass


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught, opened(tmp_path / "none.tar"):
        pass
    assert str(caught.value) == (
        f"{tmp_path}/none.tar does not exist; give a package's folder, its tar file, or an OCI image layout"
    )


# -- hostile layouts -------------------------------------------------------------------------------------------------


def with_layers(root: Path, layers: list[bytes], *, said: int | None = None) -> Path:
    """Replace the layers of a layout's image, with digests that are right; ``said`` is their size in the manifest."""
    blobs = root / "blobs" / "sha256"

    def put(body: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(body).hexdigest()
        (blobs / digest).write_bytes(body)
        return {"digest": f"sha256:{digest}", "size": len(body)}

    index = json.loads((root / "index.json").read_bytes())
    manifest = json.loads((blobs / index["manifests"][0]["digest"].removeprefix("sha256:")).read_bytes())
    kind = manifest["layers"][0]["mediaType"]
    manifest["layers"] = [{"mediaType": kind, **put(body)} for body in layers]
    if said is not None:
        manifest["layers"][0]["size"] = said
    index["manifests"][0] |= put(json.dumps(manifest).encode())
    (root / "index.json").write_text(json.dumps(index))
    return root


def blobs_of(root: Path) -> list[Path]:
    """Return the blobs of a layout, the largest (a layer) first."""
    return sorted((root / "blobs" / "sha256").iterdir(), key=lambda path: -path.stat().st_size)


@pytest.mark.parametrize("which", [0, -1], ids=["layer", "document"])
def test_flipped_bit_of_a_blob_is_found(package: Path, tmp_path: Path, which: int) -> None:
    root = oci(package, tmp_path / "oci")
    [entry_] = json.loads((root / "index.json").read_bytes())["manifests"]
    path = (
        blobs_of(root)[0] if which == 0 else root / "blobs/sha256" / entry_["digest"].removeprefix("sha256:")
    )
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(GateError) as caught, opened(root):
        pass
    assert str(caught.value) == f"{root}: blob sha256:{path.name} is not what its digest says; get it again"


@pytest.mark.parametrize("change", [b"more", None], ids=["longer", "shorter"])
def test_blob_of_another_size_is_found(package: Path, tmp_path: Path, change: bytes | None) -> None:
    root = oci(package, tmp_path / "oci")
    path = blobs_of(root)[0]
    body = path.read_bytes()
    path.write_bytes(body + change if change else body[:-1])
    with pytest.raises(GateError, match="is not what its digest says"), opened(root):
        pass


def test_missing_blob_is_found(package: Path, tmp_path: Path) -> None:
    root = oci(package, tmp_path / "oci")
    path = blobs_of(root)[0]
    path.unlink()
    with pytest.raises(StoreError) as caught, opened(root):
        pass
    assert str(caught.value) == f"{root} is not whole: blob sha256:{path.name} is missing; get it again"


def test_blob_that_is_a_link_is_refused(package: Path, tmp_path: Path) -> None:
    root = oci(package, tmp_path / "oci")
    path = blobs_of(root)[0]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GateError, match="is no plain file"), opened(root):
        pass


INDEXES: dict[str, tuple[bytes, str]] = {
    "no-json": (b"{", " is no OCI image layout: a document in it is not a JSON object"),
    "a-list": (b"[]", " is no OCI image layout: a document in it is not a JSON object"),
    "nested-too-deep": (b"[" * 100_000, " is no OCI image layout: a document in it is not a JSON object"),
    "no-image": (b'{"manifests": []}', " holds 0 images; copy the one you mean out of it with `skopeo copy`"),
    "no-manifests": (b"{}", " holds no list of images; copy the one you mean out of it with `skopeo copy`"),
    "two-images": (
        b'{"manifests": [{}, {}]}', " holds 2 images; copy the one you mean out of it with `skopeo copy`"
    ),
    "an-index": (
        b'{"manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json"}]}',
        (" holds a 'application/vnd.oci.image.index.v1+json' where "
        "application/vnd.oci.image.manifest.v1+json is expected"),
    ),
    "digest-with-a-path": (
        (b'{"manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", '
        b'"digest": "sha256:../../x", "size": 1}]}'),
        (' is no OCI image layout: {"mediaType": "application/vnd.oci.image.manifest.v1+json", '
        '"digest": "sha256:../../x", "size": 1} is no descriptor by SHA-256'),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INDEXES)
def test_wrong_index_is_refused(package: Path, tmp_path: Path, case: str) -> None:
    body, why = INDEXES[case]
    root = oci(package, tmp_path / "oci")
    (root / "index.json").write_bytes(body)
    with pytest.raises(StoreError) as caught, opened(root):
        pass
    assert str(caught.value) == f"{root}{why}"
