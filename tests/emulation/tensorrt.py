"""The module `tensorrt` of a version: its classes have what the dump of that version's real API has, and nothing else.

A plan names the ONNX file that it was made from; an execution runs it with ONNX Runtime on the emulated device's
memory. Every call is checked against the signatures in the dump.
"""

import enum
import types

from tests.emulation import building, execution
from tests.emulation.api import read_api, restrict

KINDS = [kind for module in (building, execution) for kind in vars(module).values() if isinstance(kind, type)]


class Installation:
    """A version with its device: what its classes know of, one another among it."""

    def __init__(self, trt, gpu, old, api):
        self.trt, self.gpu, self.old, self.api = trt, gpu, old, api
        for kind in KINDS:  # each version takes other members away, so that each has classes of its own
            bases = tuple(getattr(self, base.__name__, base) for base in kind.__bases__)
            members = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            setattr(self, kind.__name__, type(kind.__name__, bases, {**members, "_here": self}))


def make_tensorrt(version, gpu, settings=None):
    """The module of a version. `settings` is written to: the last config, network flags, whether to fail."""
    api = read_api(version)
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version.removeprefix("rtx-")
    trt.settings = settings if settings is not None else types.SimpleNamespace(refuse=None, cancel_at=None)
    for name, members in api.items():
        if "members" in members:
            setattr(trt, name, enum.IntEnum(name, {each: i for i, each in enumerate(members["members"])}))
    here = Installation(trt, gpu, version.startswith("8."), api)
    for name in (kind.__name__ for kind in KINDS):
        if name in api:
            setattr(trt, name, restrict(getattr(here, name), api[name]))
    return trt
