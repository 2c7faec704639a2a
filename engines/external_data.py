"""Reads and writes where the initialisers of an ONNX file lie, and keeps everything else as it is.

Knows nothing of graphs: only these fields of onnx.proto are described, and protobuf hands unknown fields through. So an
engine can be built on a machine without the onnx package; protobuf comes with ONNX Runtime.

    ModelProto { graph = 7 }   GraphProto { repeated initializer = 5 }   TensorProto { repeated external_data = 13 }
    StringStringEntryProto { key = 1, value = 2 }
"""

from functools import cache
from pathlib import Path
from typing import Any, Final

_PACKAGE: Final = "rf_export_external_data"  # a name of its own: the onnx package may be loaded too
_FIELDS: Final = {
    "StringStringEntryProto": (("key", 1, None, False), ("value", 2, None, False)),
    "TensorProto": (("external_data", 13, "StringStringEntryProto", True),),
    "GraphProto": (("initializer", 5, "TensorProto", True),),
    "ModelProto": (("graph", 7, "GraphProto", False),),
}


def read_model(path: Path) -> Any:
    """An ONNX file as a message: `model.graph.initializer[i].external_data[j].key` and `.value` may be changed.

    `model.SerializeToString()` gives the file with the changes.
    """
    message = _model_class()()
    message.ParseFromString(path.read_bytes())
    return message


def external_sizes(path: Path) -> dict[tuple[str, int], int]:
    """Bytes of every initialiser outside an ONNX file, by file and offset: shared ones have the same key."""
    sizes = {}
    for tensor in read_model(path).graph.initializer:
        values = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in values:
            sizes[values["location"], int(values.get("offset", 0))] = int(values["length"])
    return sizes


@cache
def _model_class() -> Any:
    # protobuf ships no types.
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            message.field.add(
                name=field,
                number=number,
                label=3 if repeated else 1,  # LABEL_REPEATED, LABEL_OPTIONAL
                type=9 if kind is None else 11,  # TYPE_STRING, TYPE_MESSAGE
                type_name=None if kind is None else f".{_PACKAGE}.{kind}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto"))
