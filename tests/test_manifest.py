"""The manifest itself, and fetch and verify against a local server that answers like PhysioNet and like Zenodo."""

import errno
import hashlib
import http.server
import io
import json
import re
import shutil
import socket
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pybtex.database import parse_string

from crema_lib.data import archive as archives
from crema_lib.data import manifest
from crema_lib.errors import CremaError

ROOT = Path(__file__).resolve().parents[1]
BIB = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
RNG = np.random.default_rng(0)
SIGNAL = RNG.bytes(300_000)
HEADER = b"00001_lr 12 100 12500\n" + b"".join(b"00001_lr.dat 16 1000.0(0)/mV 16 0 0 0 0 I\n" for _ in range(12))
PTBXL = {
    "LICENSE.txt": b"CC BY 4.0\n",
    "ptbxl_database.csv": b"ecg_id,patient_id\n1,15709\n",
    "records100/00000/00001_lr.dat": SIGNAL,
    "records100/00000/00001_lr.hea": HEADER,
    "records500/00000/00001_hr.dat": RNG.bytes(1000),
}


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


class Archive(http.server.ThreadingHTTPServer):
    """Serves `files` under /; `break_after[name]` bytes, once, and the connection drops; `status[name]` answers with an error."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.break_after, self.status, self.ranges, self.asked = {}, {}, {}, True, []
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def publish(self, files):
        """Like a PhysioNet project: the files and their SHA256SUMS.txt."""
        lines = "".join(f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in files.items())
        self.files = {**files, "SHA256SUMS.txt": lines.encode()}
        return self.url

    def deposit(self, files):
        """Like a Zenodo record: its JSON and the files."""
        entries = [
            {"key": k, "size": len(v), "checksum": "md5:" + hashlib.md5(v).hexdigest(), "links": {"self": f"{self.url}{k}/content"}}
            for k, v in files.items()
        ]
        record = json.dumps({"id": 1, "metadata": {}, "files": entries}).encode()
        self.files = {"api/records/1": record, **{f"{k}/content": v for k, v in files.items()}}
        return self.url + "api/records/1"

    def handle_error(self, request, client_address):
        pass  # a dropped connection is what some tests are about

    def requests_for(self, name):
        return [span for asked, span in self.asked if asked == name]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, name, span = self.server, self.path.lstrip("/"), self.headers.get("Range")
        server.asked.append((name, span))
        if name in server.status or name not in server.files:
            return self.send_error(server.status.get(name, 404))
        body = server.files[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", span)[1]) if span and server.ranges else 0
        if start >= len(body) > 0:
            return self.send_error(416)
        self.send_response(206 if span and server.ranges else 200)
        if span and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = server.break_after.pop(name, None)
        self.wfile.write(body[start:] if stop is None else body[start : start + stop])
        if stop is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args):
        pass


@pytest.fixture
def archive():
    server = Archive()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, "BACKOFF", 0.0)
    monkeypatch.setenv("CREMA_DATA", str(tmp_path / "data"))


def fetch(url, name="ptb-xl", **options):
    return archives.fetch(name, base_url=url, progress=False, **options)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- the manifest ---------------------------------------------------------------------------------------------------------------


def test_manifest_names_every_data_set_of_the_field():
    needed = """ptb-xl mimic-iv-ecg code-15 sami-trop ikem uk-biobank cpsc2018 cpsc2018-extra chapman-ningbo georgia ptb incart ludb
        brugada-huca mitdb nstdb afdb shdb-af but-qdb cinc2017"""
    assert set(needed.split()) <= set(manifest.load().index)


def test_manifest_is_complete_where_it_is_needed():
    table = manifest.load()
    assert table.index.is_unique
    opened = table[table["access"] == "open"]
    assert opened["files_url"].str.startswith("https://").all()
    assert (opened["checksums"] != "none").all()
    assert opened["licence"].ne("").all()
    assert table["url"].str.startswith("https://").all()
    assert table[["title", "format", "citation", "note"]].ne("").all(axis=None)
    for column in (*manifest.COUNTS, *manifest.NUMBERS):
        assert pd.api.types.is_numeric_dtype(table[column])
        assert (table[column].dropna() > 0).all()
    both = table.dropna(subset=["records", "patients"])
    assert (both["patients"] <= both["records"]).all()


def test_manifest_agrees_with_the_sizes_that_the_archives_state():
    table = manifest.load()
    assert table.loc["ptb-xl", ["records", "patients"]].tolist() == [21799, 18869]
    assert table.loc["code-15", ["records", "patients", "hz"]].tolist() == [345779, 233770, 400]
    assert table.loc["mimic-iv-ecg", "access"] == "open"


def test_physionet_addresses_agree_with_each_other_and_with_the_version():
    table = manifest.load()
    for row in table[table["files_url"].str.contains("physionet.org")].to_dict("records"):
        assert row["files_url"] == row["url"].replace("/content/", "/files/")
        assert row["url"].endswith(f"/{row['version']}/")


def test_every_citation_is_in_the_bibliography():
    keys = {key for cell in manifest.load()["citation"] for key in cell.split(";")}
    assert keys <= set(re.findall(r"^@\w+\{([^,]+),$", BIB, re.MULTILINE))
    for key in keys:
        assert re.match(r".+ \(\d{4}\)\. .+\. .+", manifest.reference(key)), key


def test_bibliography_has_each_key_once_and_the_fields_that_its_style_needs():
    entries = re.findall(r"^@(\w+)\{([^,]+),\n(.*?)\n\}$", BIB, re.MULTILINE | re.DOTALL)
    assert len(entries) == BIB.count("\n@")
    assert [key for _, key, _ in entries] == list(parse_string(BIB, "bibtex").entries)  # which refuses a key that is there twice
    place = {"article": "journal", "inproceedings": "booktitle", "book": "publisher", "techreport": "institution", "misc": "year"}
    for kind, key, body in entries:
        fields = dict(re.findall(r"^  (\w+) = \{(.+)\},$", body, re.MULTILINE))
        assert len(fields) == len(body.splitlines()), f"{key}: one field a line"
        assert {"title", "year", place[kind]} <= set(fields), key
        assert {"author", "editor"} & set(fields), key
        assert body.count("{") == body.count("}"), key


def broken_manifest(tmp_path, change):
    table = pd.read_csv(ROOT / "data_manifest.csv", dtype=str, keep_default_na=False)
    path = tmp_path / "manifest.csv"
    change(table).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t.head(1)]), "two rows named ptb-xl"),
        (lambda t: t.assign(access="free"), "access of 'ptb-xl' is 'free'"),
        (lambda t: t.assign(role="?"), "role of 'ptb-xl'"),
        (lambda t: t.assign(records="about 800"), "records of 'ptb-xl' is 'about 800'"),
        (lambda t: t.assign(hz="1e"), "hz of 'ptb-xl'"),
        (lambda t: t.assign(url="http://physionet.org"), "url of 'ptb-xl'"),
        (lambda t: t.assign(name="../" + t["name"]), "name of '../ptb-xl'"),
        (lambda t: t.assign(files_url=""), "ptb-xl is open and needs files_url"),
        (lambda t: t.drop(columns=["licence", "hz"]), "lacks the columns hz, licence"),
    ],
)
def test_broken_manifest_is_refused_in_one_sentence(tmp_path, change, message):
    with pytest.raises(CremaError, match=re.escape(message)):
        manifest.load(broken_manifest(tmp_path, change))


def test_unreadable_manifest(tmp_path):
    with pytest.raises(CremaError, match="cannot be read as a table"):
        manifest.load(tmp_path / "none.csv")


def test_unknown_name_gives_the_close_ones_or_all():
    with pytest.raises(CremaError, match="did you mean ptb-xl"):
        manifest.dataset("ptbxl")
    with pytest.raises(CremaError, match=r"known are ptb-xl, .*nstdb"):
        manifest.dataset("0000")


def test_locate_finds_what_is_there_and_says_how_to_get_what_is_not(tmp_path):
    with pytest.raises(CremaError, match=r"data fetch ludb\), or name the folder that holds it \(--source DIR\)"):
        manifest.locate("ludb")
    with pytest.raises(CremaError, match="get it from https://biobank"):
        manifest.locate("uk-biobank")
    with pytest.raises(CremaError, match="none is not a folder"):
        manifest.locate("ludb", tmp_path / "none")
    folder = tmp_path / "data" / "ludb"
    folder.mkdir(parents=True)
    with pytest.raises(CremaError, match="ludb is not in"):  # an empty folder is not a data set
        manifest.locate("ludb")
    (folder / "RECORDS").write_text("data/1\n")
    assert manifest.locate("ludb") == folder
    assert manifest.locate("my own", tmp_path) == tmp_path


def test_listing_shows_every_set_and_what_is_here(tmp_path):
    (tmp_path / "data" / "ludb").mkdir(parents=True)
    (tmp_path / "data" / "stores" / "ptb-xl-100hz-10s").mkdir(parents=True)
    lines = {line.split()[0]: line for line in manifest.listing().splitlines()}
    assert list(lines) == ["name", *manifest.load().index]
    assert lines["ludb"].endswith("on disk")
    assert lines["ptb-xl"].endswith("prepared") and not lines["ptb"].endswith("prepared")
    assert "21,799" in lines["ptb-xl"] and "credentialed" in lines["heedb"] and "nan" not in manifest.listing().lower()


def test_describe_names_licence_access_and_citation():
    text = manifest.describe("chapman-ningbo")
    assert "CC BY 4.0" in text and "access   open" in text and "10.1038/s41598-020-59821-7" in text and "one source family" in text


# ---- fetch ----------------------------------------------------------------------------------------------------------------------


def test_fetch_takes_every_file_and_prints_the_terms(archive, capsys):
    folder = fetch(archive.publish(PTBXL))
    got = tree(folder)
    assert {k: v for k, v in got.items() if k != "SHA256SUMS.txt"} == PTBXL
    assert set(archives.verify("ptb-xl", progress=False)["state"]) == {"ok"}
    out = capsys.readouterr().out
    assert "CC BY 4.0" in out and "open" in out and "10.1038/s41597-020-0495-6" in out and "5 files, complete and checked" in out


def test_fetch_again_downloads_nothing_that_is_there_and_right(archive):
    folder = fetch(archive.publish(PTBXL))
    (folder / "LICENSE.txt").write_bytes(b"changed")
    archive.asked.clear()
    fetch(archive.url)
    assert sorted(name for name, _ in archive.asked) == ["LICENSE.txt", "SHA256SUMS.txt"]
    assert (folder / "LICENSE.txt").read_bytes() == PTBXL["LICENSE.txt"]


def test_only_takes_a_part_with_the_tables_and_verify_knows(archive, tmp_path):
    folder = fetch(archive.publish(PTBXL), only="records100/*")
    assert set(tree(folder)) == {name for name in PTBXL if not name.startswith("records500")} | {"SHA256SUMS.txt"}
    assert len(archives.verify("ptb-xl", progress=False)) == 4
    fetch(archive.url, only=["records500/*"])
    assert len(archives.verify("ptb-xl", progress=False)) == 5
    with pytest.raises(CremaError, match=r"matches none of the 5 files .* records100, records500"):
        fetch(archive.url, only="record100/*")


def test_part_of_a_shared_archive(archive, tmp_path):
    files = {"RECORDS": b"training\n", "training/cpsc_2018/g1/A0001.hea": b"a", "training/cpsc_2018_extra/g1/Q0001.hea": b"q"}
    folder = fetch(archive.publish(files), "cpsc2018")
    assert set(tree(folder)) == {"RECORDS", "training/cpsc_2018/g1/A0001.hea", "SHA256SUMS.txt"}
    whole = tmp_path / "whole"  # somebody's mirror of the whole archive is fine too
    for name, content in archive.files.items():
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).write_bytes(content)
    shutil.rmtree(whole / "training" / "cpsc_2018_extra")
    assert len(archives.verify("cpsc2018", whole, progress=False)) == 2


def test_interrupted_transfer_goes_on_by_range_in_the_next_run(archive, monkeypatch):
    name = "records100/00000/00001_lr.dat"
    archive.publish(PTBXL)
    archive.break_after[name] = 200_000
    monkeypatch.setattr(archives, "ATTEMPTS", 1)
    with pytest.raises(CremaError, match="goes on where it stopped"):
        fetch(archive.url)
    folder = manifest.locate("ptb-xl")
    part = folder / (name + ".part")
    have = part.stat().st_size
    assert 0 < have <= 200_000 and not (folder / name).exists()
    archive.asked.clear()
    fetch(archive.url)
    assert archive.requests_for(name) == [f"bytes={have}-"]
    assert (folder / name).read_bytes() == SIGNAL and not part.exists()


def test_broken_connection_is_resumed_within_a_run(archive):
    name = "records100/00000/00001_lr.dat"
    archive.publish(PTBXL)
    archive.break_after[name] = 150_000
    folder = fetch(archive.url)
    first, second = archive.requests_for(name)
    assert first is None and int(re.fullmatch(r"bytes=(\d+)-", second)[1]) > 0
    assert (folder / name).read_bytes() == SIGNAL


def test_server_without_ranges_sends_the_whole_file_again(archive):
    name = "records100/00000/00001_lr.dat"
    archive.publish(PTBXL)
    archive.ranges = False
    archive.break_after[name] = 150_000
    folder = fetch(archive.url)
    assert (folder / name).read_bytes() == SIGNAL


@pytest.mark.parametrize("left", [b"other bytes, from another version", SIGNAL, SIGNAL + b"too long"])
def test_whatever_part_lies_there_the_file_ends_right(archive, tmp_path, left):
    name = "records100/00000/00001_lr.dat"
    part = tmp_path / "data" / "ptb-xl" / (name + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    folder = fetch(archive.publish(PTBXL))
    assert (folder / name).read_bytes() == SIGNAL and not part.exists()


def test_wrong_checksum_is_reported_and_the_file_not_kept(archive):
    archive.publish(PTBXL)
    archive.files["records500/00000/00001_hr.dat"] = b"not what the list says"
    with pytest.raises(CremaError, match=r"1 of 5 files \(records500/00000/00001_hr.dat \(wrong checksum\)\) could not be had"):
        fetch(archive.url)
    folder = manifest.locate("ptb-xl")
    assert not list(folder.rglob("*_hr.dat*"))
    assert (folder / "records100/00000/00001_lr.dat").read_bytes() == SIGNAL  # the rest came all the same
    with pytest.raises(CremaError, match=r"1 of 5 files \(records500/00000/00001_hr.dat \(missing\)\)"):
        archives.verify("ptb-xl", progress=False)


def test_file_that_the_archive_does_not_have(archive):
    archive.publish(PTBXL)
    del archive.files["LICENSE.txt"]
    with pytest.raises(CremaError, match=r"LICENSE.txt \(HTTP 404\)"):
        fetch(archive.url)


def test_archive_that_is_gone_or_busy_or_no_archive(archive, monkeypatch):
    with pytest.raises(CremaError, match=r"SHA256SUMS.txt cannot be read \(HTTP 404\)"):
        fetch(archive.url)
    archive.files["SHA256SUMS.txt"] = b"<html>moved</html>"
    with pytest.raises(CremaError, match="is not a list of sha256 checksums: it has the line '<html>"):
        fetch(archive.url)
    archive.status["SHA256SUMS.txt"] = 503
    archive.asked.clear()
    with pytest.raises(CremaError, match=r"cannot be downloaded \(HTTP 503\)"):
        fetch(archive.url)
    assert len(archive.asked) == archives.ATTEMPTS
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        with pytest.raises(CremaError, match=r"no answer.*check the network"):
            fetch(f"http://127.0.0.1:{free.getsockname()[1]}/")


def test_a_server_that_fails_stops_the_other_downloads(archive, monkeypatch):
    monkeypatch.setattr(archives, "ATTEMPTS", 1)
    archive.publish({f"data/{i}.dat": bytes([i]) for i in range(50)})
    archive.status["data/0.dat"] = 503
    with pytest.raises(CremaError, match=r"data/0.dat cannot be downloaded \(HTTP 503\)"):
        fetch(archive.url, "ludb", workers=1)
    assert [name for name, _ in archive.asked] == ["SHA256SUMS.txt", "data/0.dat"]


def test_a_list_cannot_name_a_file_outside_the_folder(archive, tmp_path):
    archive.publish({"../escaped.csv": b"x"})
    with pytest.raises(CremaError, match="would lie outside"):
        fetch(archive.url)
    assert not list(tmp_path.rglob("escaped.csv"))


def test_no_space_is_seen_before_the_download(archive, monkeypatch):
    full = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: full)
    with pytest.raises(CremaError, match=r"ptb-xl: no space left in .*complete files are kept"):
        fetch(archive.publish(PTBXL), workers=1)
    folder = manifest.locate("ptb-xl")
    assert (folder / "LICENSE.txt").read_bytes() == PTBXL["LICENSE.txt"]
    assert not (folder / "records100/00000/00001_lr.dat").exists()


def test_no_space_while_writing_keeps_what_is_complete(archive, monkeypatch):
    class Full(io.FileIO):
        def write(self, block):
            if self.tell() + len(block) > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block)

    real = open
    monkeypatch.setattr(archives, "open", lambda path, mode: Full(path, mode) if mode != "rb" else real(path, mode), raising=False)
    with pytest.raises(CremaError, match="no space left in"):
        fetch(archive.publish(PTBXL), workers=1)
    folder = manifest.locate("ptb-xl")
    assert (folder / "LICENSE.txt").is_file() and not (folder / "records100/00000/00001_lr.dat").exists()


def test_interrupt_is_one_sentence(archive, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "_receive", interrupt)
    with pytest.raises(CremaError, match="interrupted; run the command again") as told:
        fetch(archive.publish(PTBXL), workers=1)
    assert told.value.status == 130


def test_zenodo_record_is_fetched_checked_and_unpacked(archive):
    part = zipped(exams_part0__hdf5=SIGNAL)
    url = archive.deposit({"exams.csv": b"exam_id\n1\n", "exams_part0.zip": part, "exams_part1.zip": zipped(exams_part1__hdf5=b"1")})
    folder = fetch(url, "code-15", only="exams_part0.zip")
    assert set(tree(folder)) == {"MD5SUMS.txt", "exams.csv", "exams_part0.zip", "exams_part0.hdf5"}
    assert (folder / "exams_part0.hdf5").read_bytes() == SIGNAL
    assert set(archives.verify("code-15", progress=False)["state"]) == {"ok"}
    (folder / "exams_part0.hdf5").write_bytes(b"half of it")
    fetch(url, "code-15", only="exams_part0.zip")
    assert (folder / "exams_part0.hdf5").read_bytes() == SIGNAL


def test_zenodo_answer_of_another_form_and_a_zip_that_is_none(archive):
    archive.files["api/records/1"] = b'{"message": "gone"}'
    with pytest.raises(CremaError, match="does not answer as Zenodo's list of files does"):
        fetch(archive.url + "api/records/1", "code-15")
    with pytest.raises(CremaError, match=r"exams_part0.zip cannot be unpacked"):
        fetch(archive.deposit({"exams_part0.zip": b"no zip"}), "code-15")


@pytest.mark.parametrize(("name", "words"), [
    ("mimic-iv-ecg-ext-icd", ["credentialed", "physionet.org/register", "CITI", "data use agreement", "wget", "--source DIR"]),
    ("uk-biobank", ["registered", "ask for access at https://biobank", "--source DIR"]),
])  # fmt: skip
def test_access_that_a_person_must_ask_for_is_refused_with_the_steps(name, words, archive):
    with pytest.raises(CremaError) as refusal:
        fetch(archive.url, name)
    assert all(word in str(refusal.value) for word in words)
    assert not archive.asked


# ---- verify ---------------------------------------------------------------------------------------------------------------------


def test_verify_tells_ok_missing_truncated_and_corrupt_apart(archive):
    folder = fetch(archive.publish(PTBXL))
    signal = folder / "records100/00000/00001_lr.dat"
    assert len(SIGNAL) == 12 * 12500 * 2
    signal.write_bytes(SIGNAL[:-2])
    (folder / "records500/00000/00001_hr.dat").write_bytes(b"")
    (folder / "LICENSE.txt").unlink()
    (folder / "ptbxl_database.csv").write_bytes(PTBXL["ptbxl_database.csv"].replace(b"1", b"2"))
    states = archives.check("ptb-xl", progress=False).set_index("file")["state"].to_dict()
    assert states == {
        "LICENSE.txt": "missing",
        "ptbxl_database.csv": "wrong checksum",
        "records100/00000/00001_lr.dat": "truncated",
        "records100/00000/00001_lr.hea": "ok",
        "records500/00000/00001_hr.dat": "truncated",
    }
    signal.write_bytes(SIGNAL[:-2] + b"xx")
    assert archives.check("ptb-xl", progress=False).set_index("file")["state"]["records100/00000/00001_lr.dat"] == "wrong checksum"
    with pytest.raises(CremaError, match=r"4 of 5 files \(LICENSE.txt \(missing\), .*fetch ptb-xl again to repair"):
        archives.verify("ptb-xl", progress=False)
    fetch(archive.url)
    assert len(archives.verify("ptb-xl", progress=False)) == 5


def test_verify_names_the_first_five_only(archive, tmp_path):
    folder = fetch(archive.publish({f"data/{i}.dat": bytes([i]) for i in range(8)}), "ludb")
    shutil.rmtree(folder / "data")
    with pytest.raises(CremaError, match=r"8 of 8 files \(data/0.dat \(missing\), .*data/4.dat \(missing\), \.\.\.\)"):
        archives.verify("ludb", progress=False)


def test_verify_asks_the_archive_where_the_folder_has_no_list(archive, tmp_path):
    archive.publish(PTBXL)
    (tmp_path / "LICENSE.txt").write_bytes(PTBXL["LICENSE.txt"])
    states = archives.check("ptb-xl", tmp_path, base_url=archive.url, progress=False).set_index("file")["state"]
    assert states["LICENSE.txt"] == "ok" and states["ptbxl_database.csv"] == "missing"
    with pytest.raises(CremaError, match=r"has no SHA256SUMS.txt"):
        archives.check("my own", tmp_path, progress=False)


def test_truncation_is_seen_by_the_header_of_each_format(tmp_path):
    for fmt, frame in (("16", 4), ("212", 3), ("24", 6), ("16x2+24", 8)):
        offset = 24 if "+" in fmt else 0
        (tmp_path / "a.hea").write_text(
            f"a 2 360 100\n# a comment\na.dat {fmt} 200 11 0 0 0 0 ECG\na.dat {fmt.split('+')[0]} 200 11 0 0 0 0 ECG\n"
        )
        assert archives._header_size(tmp_path / "a.dat") == offset + 100 * frame
    (tmp_path / "a.hea").write_text("nonsense\n")
    assert archives._header_size(tmp_path / "a.dat") == 1


def test_real_folders_are_checked(real_data):
    brugada = archives.check("brugada-huca", real_data / "brugada-huca", progress=False).set_index("file")["state"]
    assert brugada[brugada != "ok"].to_dict() == {"files.zip": "missing"}  # the copy is unpacked: the archive's own zip is left out
    ludb = archives.check("ludb", real_data / "ludb-1.0.1", progress=False).set_index("file")["state"]
    assert (ludb[ludb.index.str.startswith("data/")] == "ok").all() and len(ludb) == 2805
    with pytest.raises(CremaError, match=r"1 of 733 files \(files.zip \(missing\)\)"):
        archives.verify("brugada-huca", real_data / "brugada-huca", progress=False)
