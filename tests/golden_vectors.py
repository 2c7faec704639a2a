"""Reads golden vectors as a host does: from their JSON and files alone. Knows nothing of who drew them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime import noise
from runtime.events import AnswerEvent, PictureEvent
from runtime.options import GenerationOptions
from runtime.schedule import timesteps


class Golden:
    """A folder of golden vectors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = json.loads((folder / "golden.json").read_text())
        assert (self.content["format"], self.content["format_version"]) == ("rf-export-golden", 1)

    def drawings(self, precision: str) -> list[dict[str, Any]]:
        return [each for each in self.content["drawings"] if each["precision"] == precision]

    def answers(self, precision: str) -> list[dict[str, Any]]:
        return [each for each in self.content["answers"] if each["precision"] == precision]

    @staticmethod
    def texts_of(bundle: Path) -> Any:
        return json.loads((bundle / "check_texts.json").read_text())["texts"]

    def check_noise_and_times(self) -> None:
        assert len(self.content["noise"]) == 20
        for each in self.content["noise"]:
            seed, stage, step = int(each["seed"]), each["stage"], each["step"]
            raw = np.random.Philox(key=np.array([seed, stage << 32 | step], np.uint64)).random_raw(len(each["raw"]))
            assert [int(value, 16) for value in each["raw"]] == raw.tolist()
            if "normal" in each:
                found, expected = noise.normal(seed, (len(each["normal"]),)), each["normal"]
            else:
                found, expected = noise.gumbel(seed, step, len(each["gumbel"]), stage), each["gumbel"]
            assert found.tolist() == expected
        for each in self.content["times"]:
            times = timesteps(
                each["num_steps"],
                each["num_patches"],
                shift=each["shift"],
                shift_base_patches=each["shift_base_patches"],
            )
            assert times.tolist() == each["values"]

    def compare(self, drawing: dict[str, Any], pictures: Sequence[PictureEvent]) -> None:
        """Tokens and bytes are equal."""
        assert [each.rep_ids.tolist() for each in pictures] == drawing["rep_ids"], drawing["name"]
        data = b"".join(each.picture.tobytes() for each in pictures)
        assert data == (self.folder / drawing["file"]).read_bytes(), drawing["name"]
        assert hashlib.sha256(data).hexdigest() == drawing["sha256"]
        assert {each.picture.shape for each in pictures} == {(drawing["height"], drawing["width"], 3)}

    def picture(self, shown: dict[str, Any]) -> np.ndarray:
        shape = (shown["height"], shown["width"], 3)
        data = (self.folder / shown["file"]).read_bytes()
        return np.frombuffer(data, np.uint8, int(np.prod(shape))).reshape(shape)


def options_of(drawing: dict[str, Any]) -> GenerationOptions:
    return GenerationOptions(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in drawing["options"].items()}
    )


def same_answers(turn: dict[str, Any], answer: AnswerEvent) -> None:
    assert (answer.token_ids, answer.text, answer.ended_by) == (turn["answer_ids"], turn["answer"], turn["ended_by"])
