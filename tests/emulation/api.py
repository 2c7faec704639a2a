"""The real API of TensorRT versions, from the dumps: restricts classes to it, and checks the arguments of calls."""

import inspect
import json
import re
from pathlib import Path

DUMPS = Path(__file__).parent.parent / "tensorrt_api"
VERSIONS = sorted(path.stem for path in DUMPS.glob("*.json"))


def read_api(version):
    return json.loads((DUMPS / f"{version}.json").read_text())["api"]


def restrict(kind, members):
    """Remove what the version lacks, and check the arguments of what it has."""
    for name, value in list(vars(kind).items()):
        if name.startswith("_"):
            continue
        if name not in members:
            delattr(kind, name)
        elif inspect.isfunction(value) and members[name] != "property":
            setattr(kind, name, _checked(kind.__name__, name, value, members[name]))
    allowed = {name for name in members if members[name] == "property"}

    def set_known(self, name, value):
        assert name.startswith("_") or name in allowed or kind.__name__ in ("ILogger", "IProgressMonitor"), (
            f"{kind.__name__} has no property {name} in this version"
        )
        object.__setattr__(self, name, value)

    kind.__setattr__ = set_known
    return kind


def _checked(kind, name, function, signatures):
    parsed = [_parse(text) for text in signatures]

    def call(self, *args, **kwargs):
        errors = []
        for signature in parsed:
            try:
                signature.bind(self, *args, **kwargs)
            except TypeError as error:
                errors.append(error)
        assert len(errors) < len(parsed) or not parsed, f"{kind}.{name}{args}{kwargs}: {signatures}"
        return function(self, *args, **kwargs)

    return call


def _parse(text):
    """A signature as pybind11 writes it, such as "set_flag(self: IBuilderConfig, flag: BuilderFlag) -> None"."""
    inside = re.sub(r"<[^>]*>", "0", text[text.index("(") + 1 : text.rindex(") ->")])
    inside = re.sub(r"\[[^\[\]]*(\[[^\[\]]*\])*[^\[\]]*\]", "", inside)
    parameters = []
    for part in inside.split(","):
        name = part.strip().partition(":")[0].strip()
        default = 0 if "=" in part else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    return inspect.Signature(parameters)
