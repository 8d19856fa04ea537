"""Archive members: unsafe names, links, devices and encryption, and archive bombs."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.archives import (
    FILES,
    MIB,
    Started,
    extract,
    left_behind,
    make_tar,
    make_zip,
    special,
    tree,
    unstated_zip,
)
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.extractor import MAX_PART_BYTES, UnsafeNameError, safe_parts
from trainer.errors import DataError

# --- names of members


BAD_NAMES = ["/etc/x", "../x", "a/../../x", "a/..", "..", "C:/x", "c:x", "a\\b", "..\\x", "\\\\host\\x"]
BAD_NAMES += ["x" * 256, "é" * 128, "d/" * 120 + "x", "/".join(["y" * 200] * 12)]


@pytest.mark.parametrize(
    ("kind", "name"),
    # A zip may use the backslash, the separator of Windows; the name stays inside the folder.
    [
        (kind, name)
        for kind in ("zip", "tar", "tar.gz")
        for name in BAD_NAMES
        if (kind, name) != ("zip", "a\\b")
    ],
)
def test_unsafe_name_rejects_the_whole_archive(tmp_path: Path, name: str, kind: str) -> None:
    files = {"good.png": b"good", name: b"evil", "later.png": b"good"}
    path = tmp_path / "sub" / "a"
    path.parent.mkdir()
    make_zip(path, files) if kind == "zip" else make_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    with pytest.raises(DataError, match="The archive is rejected because of one member: its name") as error:
        extract(path, tmp_path / "sub" / "cache")
    shown = name.replace("\\", "/") if kind == "zip" else name
    assert repr(shown[:200])[1:-1] in str(error.value)
    assert str(path) in str(error.value)
    assert left_behind(tmp_path / "sub" / "cache") == []
    assert [path.name for path in tmp_path.iterdir()] == ["sub"]


def test_name_with_a_nul_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"cat.png?.exe": b"evil"})
    archive.write_bytes(archive.read_bytes().replace(b"cat.png?.exe", b"cat.png\0.exe"))
    with pytest.raises(DataError, match="contains a NUL"):
        extract(archive, tmp_path / "cache")


def test_name_that_is_not_unicode_is_rejected(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", {os.fsdecode(b"caf\xe9.png"): b"x"})
    with pytest.raises(DataError, match="not UTF-8"):
        extract(archive, tmp_path / "cache")


@given(st.text(alphabet=st.sampled_from("ab./\\:\0 é\ud800"), max_size=12) | st.text(max_size=30))
def test_any_name_is_rejected_or_stays_below_the_folder(name: str) -> None:
    try:
        parts = safe_parts(name)
    except UnsafeNameError:
        return
    below = os.path.normpath(os.path.join("/root", *parts))
    assert below == "/root" or below.startswith("/root/")
    assert not set(parts) & {"", ".", ".."}
    assert all(len(part.encode()) <= MAX_PART_BYTES and "\0" not in part for part in parts)


@given(
    st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20), min_size=1, max_size=5)
)
def test_plain_names_are_unchanged(parts: list[str]) -> None:
    assert safe_parts("/".join(parts)) == tuple(parts)
    assert safe_parts("./" + "//".join(parts) + "/") == tuple(parts)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_later_member_of_the_same_name_wins_and_case_is_significant(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in [("a.png", b"first, longer"), ("A.png", b"other"), ("a.png", b"second")]:
            archive.writestr(name, data)
    assert tree(extract(tmp_path / "a.zip", tmp_path / "cache")) == {"a.png": b"second", "A.png": b"other"}


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_name_of_both_a_file_and_a_folder_is_rejected(tmp_path: Path, names: tuple[str, str]) -> None:
    archive = make_tar(tmp_path / "a.tar", dict.fromkeys(names, b"x"))
    with pytest.raises(DataError, match="both a file and a folder"):
        extract(archive, tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == []


def test_utf8_names_without_the_flag_are_detected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"gato são.png": b"cat"})
    data = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        offset = data.index(signature) + flags
        data[offset : offset + 2] = struct.pack("<H", 0)
    archive.write_bytes(data)
    assert list(tree(extract(archive, tmp_path / "cache"))) == ["gato são.png"]


NAMES = {
    "cp932": ["猫/ソファ.png", "犬/1.png", "ネコ/表.png"],
    "gb2312": ["猫/1.png", "狗/2.png"],
    "euc_kr": ["고양이/1.png", "강아지/2.png"],
    "cp850": ["café/1.png", "pão/2.png", "São João/3.png"],
    "cp866": ["кошка/1.png", "собака/2.png"],
}


@pytest.mark.parametrize("encoding", NAMES)
def test_undeclared_name_encoding_is_detected_by_script(tmp_path: Path, encoding: str) -> None:
    files = {name: f"{number}".encode() for number, name in enumerate([*NAMES[encoding], "plain.txt"])}
    archive, progress = unstated_zip(tmp_path / "a.zip", files, encoding), Started()
    for _ in range(2):
        folder = extract(archive, tmp_path / "cache", progress=progress)
        assert tree(folder) == files
    message = f"a.zip does not declare the encoding of its file names; they are decoded as {encoding}."
    assert [text.partition(" If ")[0] for text in progress.messages] == [message] * 2
    # The suffix separates it from an extraction with other names by an earlier version.
    assert folder.name == f"{hashlib.sha256(archive.read_bytes()).hexdigest()}-{encoding}"


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"pets\\cats\\1.png": b"cat", "pets\\dogs\\": b""})
    folder = extract(archive, tmp_path / "cache")
    assert tree(folder) == {"pets/cats/1.png": b"cat"}
    assert (folder / "pets" / "dogs").is_dir()


def test_folders_and_hidden_files_are_kept_and_inner_archives_not_extracted(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"a": b"a"}).read_bytes()
    files = {"inner.zip": inner, "__MACOSX/._a": b"x", ".hidden": b"y"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("empty/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    folder = extract(tmp_path / "a.zip", tmp_path / "cache")
    assert tree(folder) == files
    assert (folder / "empty").is_dir()


# --- kinds of members


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc/passwd"),
        special("link", tarfile.SYMTYPE, "good.png"),
        special("device", tarfile.CHRTYPE),
        special("device", tarfile.BLKTYPE),
        special("pipe", tarfile.FIFOTYPE),
        special("odd", b"Z"),
    ],
    ids=lambda member: f"{member.name}-{member.type.decode()}",
)
def test_link_or_device_rejects_the_whole_tar(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = make_tar(tmp_path / "a.tar", [(tarfile.TarInfo("good.png"), b"x"), (member, b"")])
    with pytest.raises(
        DataError, match=rf"a symbolic link, a device.*Received: member '{member.name}' of .*a\.tar"
    ):
        extract(archive, tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == []


def test_hard_link_to_an_earlier_member_becomes_a_copy(tmp_path: Path) -> None:
    members = [
        (tarfile.TarInfo("a/1.png"), b"one"),
        (special("b/2.png", tarfile.LNKTYPE, "a/1.png"), b""),
        (special("b/3.png", tarfile.LNKTYPE, "./b/2.png"), b""),
        (tarfile.TarInfo("a/1.png"), b"two"),
    ]
    folder = extract(make_tar(tmp_path / "a.tar", members), tmp_path / "cache")
    assert tree(folder) == {"a/1.png": b"two", "b/2.png": b"one", "b/3.png": b"one"}


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../x", "later.png", "link.png", "folder", "", "C:x", "a\\b"]
)
def test_hard_link_to_anything_else_rejects_the_whole_tar(tmp_path: Path, target: str) -> None:
    members = [
        (special("folder", tarfile.DIRTYPE), b""),
        (special("link.png", tarfile.LNKTYPE, target), b""),
        (tarfile.TarInfo("later.png"), b"x"),
    ]
    with pytest.raises(DataError, match=r"The archive is rejected because of .*Received: member "):
        extract(make_tar(tmp_path / "a.tar", members), tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == []


def test_hard_links_count_towards_the_size_limit(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo("a"), bytes(MIB))]
    members += [(special(f"{number}", tarfile.LNKTYPE, "a"), b"") for number in range(4)]
    archive = make_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"larger than data\.max_extracted_mib allows"):
        extract(archive, tmp_path / "cache", max_bytes=4 * MIB)
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_link_or_device_rejects_the_whole_zip(tmp_path: Path, mode: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", b"x")
        member = zipfile.ZipInfo("link")
        member.external_attr = (mode | 0o777) << 16
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(DataError, match=r"a link or a device.*member 'link' of .*a\.zip"):
        extract(tmp_path / "a.zip", tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == []


def test_encrypted_zip_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", FILES)
    data = bytearray(archive.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="it is encrypted; unpack the archive with its password first"):
        extract(archive, tmp_path / "cache")


# --- archive bombs


def test_zip_above_the_size_limit_is_rejected_before_extraction(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(MIB), "b": bytes(MIB)})
    with pytest.raises(DataError, match=r"larger than data.max_extracted_mib allows \(1 MiB\)"):
        extract(archive, tmp_path / "cache", max_bytes=MIB, progress=(started := Started()))
    assert not started.any
    assert left_behind(tmp_path / "cache") == []


def test_tar_above_the_size_limit_is_rejected_during_extraction(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tgz", {"a": bytes(MIB), "b": bytes(MIB)}, "w:gz")
    with pytest.raises(DataError, match=r"larger than data.max_extracted_mib allows"):
        extract(archive, tmp_path / "cache", max_bytes=MIB + 5000)
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_member_with_the_ratio_of_a_bomb_is_rejected(tmp_path: Path, kind: str) -> None:
    files = {"bomb": bytes(66 * MIB)}
    archive = make_zip(tmp_path / "a", files) if kind == "zip" else make_tar(tmp_path / "a", files, "w:gz")
    with pytest.raises(DataError, match=r"200 times its size, like an archive bomb.*member 'bomb'"):
        extract(archive, tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == []


def test_bomb_of_overlapping_members_is_rejected_before_extraction(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {f"{number:03d}": bytes(MIB) for number in range(2)})
    data = archive.read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = data[start : start + (end - start) // 2]
    count = 1100
    directory = entry * count
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    archive.write_bytes(data[:start] + directory + tail)
    with pytest.raises(DataError, match="like an archive bomb"):
        extract(archive, tmp_path / "cache", max_bytes=2**40)


def test_image_of_one_colour_is_not_a_bomb(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"white.bmp": b"\xff" * 20 * MIB})
    assert archive.stat().st_size < 20 * MIB / 200
    assert len(tree(extract(archive, tmp_path / "cache"))["white.bmp"]) == 20 * MIB


def test_tar_header_that_would_fill_the_memory_is_rejected(tmp_path: Path) -> None:
    member = special("x", tarfile.XHDTYPE)
    member.size = 2**32
    (tmp_path / "a.tar").write_bytes(member.tobuf() + bytes(4096))
    with pytest.raises(DataError, match=r"a header of 4,294,967,296 bytes"):
        extract(tmp_path / "a.tar", tmp_path / "cache")
