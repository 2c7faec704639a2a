"""The comparison of plans, on the tiny bundle: all contenders by both plans, and how they stand to one another."""

from plans import measure, table

from rf_export.benchmark.task import BenchOptions
from runtime.options import Plan

TUNED = Plan(num_steps=4, shift=2.0, guided=(0.0, 0.5))


def test_all_contenders_draw_by_both_plans_in_one_run(tiny_bundle, tiny_checkpoint) -> None:
    heard = []
    options = BenchOptions(precisions=("fp32",), num_rounds=2, num_picture_rounds=2, compile=False)
    result = measure(
        tiny_bundle, tiny_checkpoint, {"paper": "paper", "tuned": TUNED}, options, lambda *told: heard.append(told)
    )
    names = {f"{who}, {plan}" for who in ("onnx fp32", "eager fp32", "eager bf16") for plan in ("paper", "tuned")}
    assert set(result["timings"]["picture"]) == set(result["timings"]["denoise_step"]) == names
    assert result["plans"]["tuned"]["plan"] == "4 steps, shift 2, guided from 0 to 0.5"
    assert (result["plans"]["tuned"]["num_steps"], result["plans"]["tuned"]["guided_steps"]) == (4, 3)
    assert result["plans"]["paper"]["guided_steps"] == 25
    assert result["agreement"]["onnx fp32, tuned"]["passed"] and result["agreement"]["eager fp32, tuned"]["passed"]
    pictures = result["speedups"]["picture"]
    assert pictures["eager fp32, paper"]["eager fp32, tuned"]["median"] > 1.5, "4 steps take less than 25"
    assert pictures["eager fp32, tuned"]["eager fp32, tuned"]["median"] == 1
    assert len(table(result).splitlines()) == 1 + len(names) + len(result["left_out"])
    assert [told[1] for told in heard] == sorted(told[1] for told in heard)
