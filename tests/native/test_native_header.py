"""rf.h is C99, its structs are those of the binding, and the library exports nothing else."""

import ctypes
import re

from building import NATIVE, build, require_compiler, run

from runtime.native import structs as native
from runtime.native.library import find_onnxruntime, load_library


def compiled(tmp_path, source, name="probe.c", *options):
    path = tmp_path / name
    path.write_text(source)
    compiler = "c++" if name.endswith("cpp") else "cc"
    flags = (*options, "-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-I", NATIVE / "include")
    run(compiler, *flags, path, "-o", tmp_path / "probe")
    return run(tmp_path / "probe")


def test_rf_h_is_c99(tmp_path):
    require_compiler()
    compiled(tmp_path, "#include <rf.h>\nint main(void) { return RF_OK; }\n", "probe.c", "-std=c99")


def test_structs_are_those_of_the_binding(tmp_path):
    require_compiler()
    structs = {
        "rf_open_options": native.OpenOptions,
        "rf_prompt": native.Prompt,
        "rf_draw_options": native.DrawOptions,
        "rf_event": native.DrawEvent,
        "rf_size": native.Size,
        "rf_pictures": native.Pictures,
        "rf_ask_options": native.AskOptions,
        "rf_word": native.Word,
        "rf_answer": native.Answer,
    }
    lines = [
        f'printf("{name}.{field[0]} %zu\\n", offsetof({name}, {field[0]}));'
        for name, struct in structs.items()
        for field in struct._fields_
    ] + [f'printf("{name} %zu\\n", sizeof({name}));' for name in structs]
    found = compiled(
        tmp_path, "#include <rf.h>\n#include <stdio.h>\nint main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    expected = [
        f"{name}.{field[0]} {getattr(struct, field[0]).offset}"
        for name, struct in structs.items()
        for field in struct._fields_
    ] + [f"{name} {ctypes.sizeof(struct)}" for name, struct in structs.items()]
    assert found.splitlines() == expected


def test_the_library_exports_what_the_header_declares():
    library = build() / "librf_runtime.so"
    exported = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    declared = set(re.findall(r"\b(rf_\w+)\(", (NATIVE / "include/rf.h").read_text())) - {"rf_draw_callback"}
    functions = {name for name in exported if name.startswith("rf_")}
    assert exported == functions
    assert functions == {name for name in declared if f"{name}(" in (NATIVE / "src/api.cpp").read_text()}


def test_options_of_an_older_header_end_where_it_ends(native_library, tiny_bundle):
    library, handle = load_library(native_library), ctypes.c_void_p()
    options = native.OpenOptions()
    library.rf_open_options_init(ctypes.byref(options))
    options.library = (find_onnxruntime() or "").encode()
    options.backend = b"abacus"
    bundle = str(tiny_bundle).encode()
    assert library.rf_open(bundle, ctypes.byref(options), ctypes.byref(handle)) == 1
    assert library.rf_last_error() == b"backend must be one of ort, tensorrt, tensorrt-rtx, got 'abacus'."
    options.size = native.OpenOptions.backend.offset
    assert library.rf_open(bundle, ctypes.byref(options), ctypes.byref(handle)) == 0
    library.rf_close(handle)
