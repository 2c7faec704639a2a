"""Ways to spoil a bundle that every host has to refuse, in the same sentence. Knows no host."""

import json
from collections.abc import Callable
from pathlib import Path


def damage(bundle: Path, how: str) -> str:
    """Spoil a bundle in one way; returns the path of the graph that most of them concern."""
    manifest = bundle / "manifest.json"
    content = json.loads(manifest.read_text())
    graph = next(name for name in content["files"] if name.startswith("graphs/rep_decoder.fp32"))
    if how == "no manifest":
        manifest.unlink()
    elif how == "no graph":
        (bundle / graph).unlink()
    elif how == "cut off":
        (bundle / graph).write_bytes((bundle / graph).read_bytes()[:-1])
    elif how == "one bit":
        data = bytearray((bundle / graph).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / graph).write_bytes(data)
    elif how == "lfs":
        (bundle / graph).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif how == "a link out":
        (bundle / graph).rename(bundle.parent / "elsewhere.onnx")
        (bundle / graph).symlink_to(bundle.parent / "elsewhere.onnx")
    elif how == "checksum":
        content["sampling"]["num_steps"] += 1
        manifest.write_text(json.dumps(content))
    else:
        content.pop("checksum")
        changed: dict[str, Callable[[], object]] = {
            "requires": lambda: content.update(requires=["clamped-time", "wings"]),
            "version": lambda: content.update(format_version=99),
            "format": lambda: content.update(format="else"),
            "unknown key": lambda: content["model"].update(wings=2),
            "missing key": lambda: content["sampling"].pop("top_k"),
            "wrong type": lambda: content["model"].update(vocab_size="many"),
            "path": lambda: content["tokenizer"].update(file="../tokenizer.json"),
            "path in table": lambda: content["files"].update({"../x": content["files"][graph]}),
            "bundle_id": lambda: content.update(bundle_id="0" * 16),
            "failed": lambda: content["verified"]["fp32"].update(verdict="failed", first_failure="it is wrong"),
            "nobody": lambda: content["verified"].pop("fp32"),
            "other graphs": lambda: content["verified"]["fp32"].update(graphs={"denoiser": "0" * 64}),
            "no precision": lambda: content.update(graphs=[g for g in content["graphs"] if g["precision"] != "fp32"]),
        }
        changed[how]()
        manifest.write_text(json.dumps(content))
    return graph
