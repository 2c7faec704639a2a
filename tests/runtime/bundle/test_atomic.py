"""A folder appears as a whole or not at all, whatever happens on the way."""

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import mounting

from runtime.bundle.atomic import is_temporary, locked, remove_leftovers, restore, write_file, write_folder
from runtime.errors import RFError


def write(out, force=False):
    return write_folder(out, replaceable=lambda path: (path / "mark").exists(), force=force, what="bundle")


def fill(folder, text):
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_text(text)
    (folder / "mark").touch()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_the_block_ends(tmp_path):
    with write(tmp_path / "deep" / "out") as folder:
        fill(folder, "a")
        assert not (tmp_path / "deep" / "out").exists()
        assert folder.parent == tmp_path / "deep"
        assert is_temporary(folder)
    assert (tmp_path / "deep" / "out" / "sub" / "data").read_text() == "a"
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(error), write(tmp_path / "out") as folder:
        fill(folder, "a")
        raise error
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing_and_is_told(tmp_path):
    with pytest.raises(RFError, match=r"The disk is full: .*out was not written"), write(tmp_path / "out") as folder:
        fill(folder, "a")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_a_really_full_disk(tmp_path):
    """/dev/full fails as a full disk does."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(RFError, match="The disk is full"), write(tmp_path / "out") as folder:
        fill(folder, "a")
        full.write_bytes(bytes(10_000))
    assert names(tmp_path) == []


def test_another_error_of_the_system_keeps_its_traceback(tmp_path):
    with pytest.raises(PermissionError), write(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no")
    assert names(tmp_path) == []


def test_an_old_folder_stays_until_the_new_one_is_complete(tmp_path):
    with write(tmp_path / "out") as folder:
        fill(folder, "old")
    with pytest.raises(ValueError, match="stop"), write(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
        raise ValueError("stop")
    assert (tmp_path / "out" / "sub" / "data").read_text() == "old"
    with write(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "out" / "sub" / "data").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_only_folders_of_its_kind_are_replaced(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    for name, message in (("file", "not a folder"), ("other", "not a bundle"), ("link", "not a folder")):
        with pytest.raises(RFError, match=message), write(tmp_path / name, force=True):
            pass
    with write(tmp_path / "empty") as folder:
        fill(folder, "a")
    assert (tmp_path / "other" / "precious").exists()


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(RFError, match="exists"), write(tmp_path / "out") as folder:
        fill(folder, "mine")
        with write_folder(tmp_path / "out2", replaceable=bool, force=False, what="bundle") as other:
            fill(other, "theirs")
        (tmp_path / "out2").rename(tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "data").read_text() == "theirs"


# A shell that starts tests in the background has them ignore SIGINT, and the child would inherit that.
WRITER = textwrap.dedent("""
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from pathlib import Path
    from runtime.bundle.atomic import write_folder
    with write_folder(Path(sys.argv[1]), replaceable=bool, force=True, what="bundle") as folder:
        (folder / "mark").touch()
        print("writing", flush=True)
        time.sleep(60)
""")


@pytest.fixture
def running_writer(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_writer_leaves_nothing_that_is_read_and_the_next_cleans_up(tmp_path, running_writer, how):
    running_writer.send_signal(how)
    running_writer.wait()
    assert not (tmp_path / "out").exists()
    assert [is_temporary(path) for path in tmp_path.iterdir()] == [True, True]  # the folder and the lock
    with write(tmp_path / "out") as folder:
        fill(folder, "second")
    assert names(tmp_path) == ["out"]


def test_a_second_writer_waits_for_the_first_and_says_for_whom(tmp_path, running_writer, caplog):
    waiting = threading.Thread(target=fill_alone, args=(tmp_path / "out",))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    assert names(tmp_path) == [".out.partial-lock", f"out.partial-{running_writer.pid}"]
    assert f"Waiting for process {running_writer.pid}, which is writing {tmp_path / 'out'}." in caplog.text
    running_writer.kill()  # a lock never outlives its process
    waiting.join(10)
    assert names(tmp_path) == ["out"]


def fill_alone(out):
    with write(out) as folder:
        fill(folder, "second")


@pytest.mark.parametrize("force", [False, True])
def test_of_many_writers_at_once_one_or_the_last_wins_and_nothing_is_left(tmp_path, force):
    refused = []

    def work(number):
        try:
            with write(tmp_path / "out", force=force) as folder:
                fill(folder, str(number))
        except RFError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["data", "mark", "sub"]
    assert len(refused) == (0 if force else 11)
    assert all("exists" in message for message in refused)


def test_a_folder_is_looked_at_when_nobody_else_writes_it(tmp_path, caplog):
    """Whoever replaces it moves it away meanwhile: it is then neither there nor a bundle."""
    out, told = tmp_path / "out", []

    def work():
        try:
            with write(out, force=True) as folder:
                fill(folder, "second")
        except RFError as error:
            told.append(str(error))

    with locked(out):
        (out / "half").mkdir(parents=True)
        other = threading.Thread(target=work)
        other.start()
        while other.is_alive() and "Waiting for" not in caplog.text:
            time.sleep(0.01)
        fill(out, "first")
    other.join()
    assert told == []
    assert (out / "sub" / "data").read_text() == "second"


def test_a_file_appears_as_a_whole_and_what_a_kill_left_goes(tmp_path):
    (tmp_path / ".a.partial-0").write_text("of somebody who was killed")
    (tmp_path / ".a.partial-lock").write_text("12345")
    (tmp_path / "a").write_text("old")
    with pytest.raises(ValueError, match="stop"), write_file(tmp_path / "a") as partial:
        partial.write_text("new")
        raise ValueError("stop")
    assert (tmp_path / "a").read_text() == "old"
    with write_file(tmp_path / "a") as partial:
        partial.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
        assert is_temporary(partial)
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    for out in (tmp_path / "none" / "a", tmp_path / ("x" * 256)):
        with pytest.raises(RFError, match=r"was not written: .*Choose another"), write_file(out) as partial:
            partial.write_text("x")
    with pytest.raises(RFError, match=r"a was not written: No space left"), write_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def privately(path):
    """As a library writes that makes a temporary file of its own: nobody else may read it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(b"x")
    Path(file.name).replace(path)


def test_a_new_file_has_the_mode_that_a_plain_open_gives(tmp_path, umask):
    for name, writer in (("private", privately), ("plain", Path.touch), ("closed", lambda path: path.chmod(0))):
        with write_file(tmp_path / name) as partial:
            writer(partial)
        assert mode_of(tmp_path / name) == 0o666 & ~umask


def test_a_file_that_replaces_another_has_its_mode(tmp_path, umask):
    for mode in (0o600, 0o640, 0o664, 0o444, 0o755):
        (tmp_path / "out").touch()
        (tmp_path / "out").chmod(mode)
        for writer in (privately, Path.touch):
            with write_file(tmp_path / "out") as partial:
                writer(partial)
            assert mode_of(tmp_path / "out") == mode
        (tmp_path / "out").unlink()


def test_a_new_folder_and_all_in_it_have_plain_modes_and_one_that_replaces_another_has_those_of_that(tmp_path, umask):
    (tmp_path / "elsewhere").touch()
    (tmp_path / "elsewhere").chmod(0o400)
    for _ in range(2):
        with write(tmp_path / "out", force=True) as folder:
            fill(folder, "a")
            privately(folder / "sub" / "data")
            privately(folder / "weights")
            (folder / "second name").hardlink_to(tmp_path / "elsewhere")
            (folder / "link").symlink_to("weights")
        assert mode_of(tmp_path / "out") == mode_of(tmp_path / "out" / "sub") == 0o777 & ~umask
        for name in ("weights", "mark", "sub/data"):
            assert mode_of(tmp_path / "out" / name) == 0o666 & ~umask
        assert mode_of(tmp_path / "elsewhere") == 0o400, "a second name of a file that is not ours"
    (tmp_path / "out").chmod(0o700)
    (tmp_path / "out" / "sub").chmod(0o750)
    (tmp_path / "out" / "weights").chmod(0o640)
    with write(tmp_path / "out", force=True) as folder:
        fill(folder, "a")
        privately(folder / "weights")
        (folder / "more").touch()
    found = {name: mode_of(tmp_path / "out" / name) for name in (".", "sub", "weights", "more")}
    assert found == {".": 0o700, "sub": 0o750, "weights": 0o640, "more": 0o666 & ~umask}


@settings(max_examples=20)
@given(
    st.text("ax\u00e4\u4e16\U0001f642", min_size=1).map(
        lambda text: (text * 255).encode()[:255].decode(errors="ignore")
    )
)
def test_every_name_that_a_file_can_have_is_written(name):
    for length in (len(name), 240 * len(name) // 255, 100 * len(name) // 255, 1):
        with tempfile.TemporaryDirectory() as place:
            out = Path(place, name[:length])
            with write_file(out) as partial:
                partial.write_text("file")
                assert is_temporary(partial) and len(os.fsencode(partial.name)) <= 143, "eCryptfs has no longer names"
            assert out.read_text() == "file"
            out.unlink()
            for text in ("old", "new"):
                with write(out, force=True) as folder:
                    fill(folder, text)
            assert (out / "sub" / "data").read_text() == "new"
            assert names(Path(place)) == [out.name]


def test_leftovers_of_a_long_name_are_those_of_no_other_name(tmp_path):
    first, second = tmp_path / ("a" * 200 + "1"), tmp_path / ("a" * 200 + "2")
    with write(first) as one:
        fill(one, "first")
        with write(second) as two:
            fill(two, "second")
            assert one.name != two.name
    for out in (first, second):
        out.rename(one.with_name(one.name.replace("partial", "replaced")) if out == first else two)
    restore(first)
    assert (first / "sub" / "data").read_text() == "first"
    assert two.exists()


@pytest.mark.parametrize("name", ["x" * 256, "\u00e4" * 128, "\U0001f642" * 64])
def test_a_name_that_no_file_can_have_is_refused_before_the_work(tmp_path, name):
    for writer in (write_file, write):
        with pytest.raises(RFError, match="was not written: File name too long"), writer(tmp_path / name):
            pytest.fail("the work was done")


@pytest.mark.parametrize("kind", ["pipe", "device", "terminal", "folder"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, kind):
    """Such as /dev/null, which root could replace for the whole system."""
    out = tmp_path / "out"
    links = {"device": "/dev/null", "terminal": "/proc/self/fd/1"}
    {"pipe": os.mkfifo, "folder": Path.mkdir}.get(kind, lambda path: path.symlink_to(links[kind]))(out)
    before = out.lstat()
    with pytest.raises(RFError, match="is not a regular file"), write_file(out):
        pytest.fail("the work was done")
    assert os.path.samestat(out.lstat(), before)
    assert names(tmp_path) == ["out"]


MOUNTED = textwrap.dedent("""
    import subprocess, sys
    from pathlib import Path
    from runtime.bundle.atomic import write_folder
    out = Path(sys.argv[1])
    subprocess.run(["mount", *sys.argv[2:], out], check=True)
    (out / "mark").touch()
    with write_folder(out, replaceable=bool, force=True, what="bundle"):
        print("the work was done")
""")


@pytest.mark.parametrize("options", [["-t", "tmpfs", "tmpfs"], ["--bind", "{0}/store"]], ids=["disk", "bind"])
def test_a_mount_point_is_refused_before_the_work(tmp_path, options):
    within = mounting()
    if within is None:
        pytest.skip("this machine lets nobody mount a file system")
    (tmp_path / "a bundle").mkdir()
    (tmp_path / "store").mkdir()
    options = [option.format(tmp_path) for option in options]
    command = [*within, sys.executable, "-c", MOUNTED, tmp_path / "a bundle", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "RFError" in done.stderr and "is a mount point" in done.stderr, done.stderr
    assert done.stdout == ""


def test_a_folder_that_the_system_does_not_let_go_is_told_and_stays(tmp_path, monkeypatch):
    with write(tmp_path / "out") as folder:
        fill(folder, "old")
    busy = OSError(errno.EBUSY, "Device or resource busy")
    with (
        pytest.raises(RFError, match=r"cannot be replaced as a whole \(Device or resource busy\)"),
        write(tmp_path / "out", force=True) as folder,
    ):
        fill(folder, "new")
        monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(busy))
    assert (tmp_path / "out" / "sub" / "data").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_without_locks_files_and_folders_are_written_all_the_same(tmp_path, monkeypatch):
    """As on Windows; what others left stays, since nobody can tell whether they are at work."""
    monkeypatch.setattr("runtime.bundle.atomic.fcntl", None)
    (tmp_path / "out.partial-4000000").mkdir()
    with write_file(tmp_path / "a") as partial:
        partial.write_text("a")
    with write(tmp_path / "out") as folder:
        fill(folder, "b")
    assert names(tmp_path) == ["a", "out", "out.partial-4000000"]


def test_ctrl_c_leaves_nothing(tmp_path, running_writer):
    time.sleep(0.1)
    running_writer.send_signal(signal.SIGINT)
    running_writer.wait()
    assert names(tmp_path) == []


def test_killed_between_the_two_renames_the_old_folder_comes_back(tmp_path):
    with write(tmp_path / "out.replaced-4000000") as folder:
        fill(folder, "old")
    with write(tmp_path / "out.partial-4000000") as folder:
        fill(folder, "new")
    remove_leftovers(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "data").read_text() == "old"


def test_what_a_killed_writer_left_comes_back_on_demand_and_a_living_one_is_waited_for(tmp_path, running_writer):
    with write(tmp_path / "out.replaced-4000000") as folder:
        fill(folder, "old")
    waiting = threading.Thread(target=restore, args=(tmp_path / "out",))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and not (tmp_path / "out").exists()
    running_writer.kill()
    waiting.join(10)
    restore(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "data").read_text() == "old"


def test_killed_before_the_old_folder_is_deleted_it_is_deleted_later(tmp_path):
    for name in ("out", "out.replaced-4000000"):
        with write(tmp_path / name) as folder:
            fill(folder, name)
    remove_leftovers(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "data").read_text() == "out"


def test_neighbours_with_similar_names_are_left_alone(tmp_path):
    for name in ("out.partial-x", "out.partial-", "out2.partial-1", "[o]ut.partial-1"):
        (tmp_path / name).mkdir()
    with write(tmp_path / "out") as folder:
        fill(folder, "a")
    assert names(tmp_path) == sorted(["out", "out.partial-x", "out.partial-", "out2.partial-1", "[o]ut.partial-1"])


def test_a_relative_path_is_meant_where_the_call_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with write(type(tmp_path)("out")) as folder:
        fill(folder, "a")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert (tmp_path / "out" / "mark").exists()
