"""`rf-export` on a file system in memory that is full or read-only, and once more when it no longer is.

    unshare --mount python small_disk.py TRACES FREE_KIB|ro DISK ARGUMENT...

DISK gets a copy of the bundle TRACES, `bundle`, and what lies beside DISK in the folder `beside`. Then a filler takes
all but FREE_KIB. One JSON line per try: the exit code, and the state of the bundle and of everything beside it. The
mount ends with the process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


def main() -> None:
    from kills import fork
    from replayed_export import command, look

    traces, how, disk, *arguments = sys.argv[1:]
    folder, log = Path(disk), Path(disk).with_name("stderr")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", disk], check=True)
    shutil.copytree(traces, folder / "bundle", ignore=shutil.ignore_patterns("engines"))
    shutil.copytree(folder.with_name("beside"), folder, dirs_exist_ok=True)
    filler = folder / "filler"
    for restricted in (True, False):
        if how == "ro":
            subprocess.run(["mount", "-o", f"remount,{'ro' if restricted else 'rw'}", disk], check=True)
        elif restricted:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - int(how) * 1024)
        else:
            filler.unlink()
        code = os.waitstatus_to_exitcode(os.waitpid(fork(lambda: command(arguments), log), 0)[1])
        found = {**look(folder / "bundle"), "names": sorted(path.name for path in folder.iterdir())}
        print(json.dumps({"code": code, "stderr": log.read_text(), **found}), flush=True)


if __name__ == "__main__":
    main()
