"""Bodies for what TensorRT's headers leave to its library: each function that is not emulated ends the program.

    python stubs.py INCLUDE > stubs.hpp

Reads `NvInferImpl.h` of any version: its classes are lists of pure virtual functions.
"""

import re
import sys
from pathlib import Path

CLASSES = {"VRuntime": "RuntimeStub", "VCudaEngine": "EngineStub", "VExecutionContext": "ContextStub"}


def bodies(header: str, name: str) -> str:
    """The class, with a body for each function, and a macro that tells of each that it is there."""
    (content,) = re.findall(rf"^class {name} : public VRoot\n(.*?)^}};", header, re.MULTILINE | re.DOTALL)
    content = re.sub(r"//[^\n]*|TRT_NODISCARD|TRT_DEPRECATED", "", content)
    found = re.findall(r"virtual\s+([^;]+?)\s+noexcept\s*=\s*0\s*;", content)
    assert found, name
    has = {re.findall(r"(\w+)\(", each)[0] for each in found}
    lines = [f"  {' '.join(each.split())} noexcept override {{ std::abort(); }}" for each in found]
    macros = [f"#define HAS_{each}" for each in sorted(has)]
    return "\n".join([*macros, f"class {CLASSES[name]} : public apiv::{name} {{", " public:", *lines, "};"])


if __name__ == "__main__":
    text = (Path(sys.argv[1]) / "NvInferImpl.h").read_text()
    print("#include <cstdlib>\nnamespace nvinfer1 {")
    print("\n".join(bodies(text, name) for name in CLASSES))
    print("}  // namespace nvinfer1")
