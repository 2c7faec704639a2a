"""Writes down the Python API of TensorRT versions, from NVIDIA's own bindings, on a machine without TensorRT and GPU.

    python tests/tensorrt_api/dump.py            # all versions that the project supports
    python tests/tensorrt_api/dump.py 10.3.0     # one of them

The bindings of a version are a wheel of 1 MB on PyPI; the libraries that they link to are replaced by stubs, a few C
functions compiled here with gcc, since importing the bindings calls none of them. Classes, methods with their
signatures, and members of enumerations go into `<version>.json` beside this file, which the tests read offline.
Needs pip, gcc, nm and a Python for which there is a wheel. Knows nothing of what the project uses, but for the list of
classes.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
# Version -> the wheel that holds its bindings.
WHEELS = {
    "8.6.1": "tensorrt-bindings==8.6.1",  # JetPack 6.0 has 8.6.2
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",  # JetPack 6.1 and 6.2
    "10.13.3": "tensorrt-cu12-bindings==10.13.3.9",  # JetPack 7.0 and 7.1
    "10.16.1": "tensorrt-cu13-bindings==10.16.1.11",  # JetPack 7.2
    "11.4.0": "tensorrt-cu13-bindings==11.4.0.106",  # JetPack 7.2.2
    "rtx-1.7.1": "tensorrt-rtx-cu13-bindings==1.7.1.116",
}
CLASSES = [
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "Dims",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IAttention",
    "IAttentionInputLayer",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IRuntimeConfig",
    "ISerializationConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "LayerType",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserRefitter",
    "ParserError",
    "PreviewFeature",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "SerializationFlag",
    "TensorIOMode",
]

READ = """
import importlib, json, re, sys
trt = importlib.import_module(sys.argv[1])
def signatures(member):
    lines = (getattr(member, "__doc__", None) or "").splitlines()
    found = [re.sub(r"^\\d+\\. ", "", line) for line in lines if re.match(r"^(\\d+\\. )?\\w+\\(.*\\) -> ", line)]
    return [re.sub(r"\\btensorrt\\w*\\.(?:\\w+\\.)?(?=[A-Z])", "", line) for line in found]
api = {}
for name in json.loads(sys.argv[2]):
    kind = getattr(trt, name, None)
    if kind is None:
        continue
    if hasattr(kind, "__members__"):
        api[name] = {"members": list(kind.__members__)}
        continue
    names = [member for member in dir(kind) if not member.startswith("_")] + ["__init__"]
    api[name] = {member: signatures(getattr(kind, member)) if callable(getattr(kind, member)) else "property"
                 for member in sorted(names)}
print(json.dumps({"version": trt.__version__, "api": api}))
"""


def dump(version: str) -> dict[str, object]:
    """The API of a version, as it is written into the JSON file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "-d", str(folder), WHEELS[version]], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (bindings,) = [path for path in folder.glob("*/*.so") if "bindings" in path.parent.name]
        make_stubs(bindings, folder)
        code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{READ}"
        done = subprocess.run(
            [sys.executable, "-c", code, bindings.parent.name, json.dumps(CLASSES)],
            env={"LD_LIBRARY_PATH": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        read = json.loads(done.stdout)
    return {"wheel": WHEELS[version], **read}


def make_stubs(bindings: Path, folder: Path) -> None:
    """Compile an empty function for every symbol that the bindings want from NVIDIA's libraries."""
    needed = subprocess.run(["readelf", "-d", str(bindings)], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"\[(lib(?:nv|tensorrt)\S+)\]", needed)
    wanted = subprocess.run(["nm", "-D", "--undefined-only", str(bindings)], capture_output=True, text=True, check=True)
    names = re.findall(r"\b(create\w+|get\w+|initLib\w+|_ZN\d+nv\w+)$", wanted.stdout, re.MULTILINE)
    functions = "\n".join(f'void f{i}(void) __asm__("{name}"); void f{i}(void) {{}}' for i, name in enumerate(names))
    (folder / "stub.c").write_text(functions)
    for library in libraries:
        target = ["-Wl,-soname," + library, "-o", str(folder / library)]
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", str(folder / "stub.c"), *target], check=True)


def main() -> None:
    """Write the files of the versions that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=", ".join(WHEELS))
    for version in parser.parse_args().versions or WHEELS:
        path = HERE / f"{version}.json"
        path.write_text(json.dumps(dump(version), indent=0, sort_keys=True) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
