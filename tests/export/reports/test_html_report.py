"""The page for sign-off: complete in one file, verdict first, and nothing of a bundle's text becomes markup."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from convmae_deploy.bundle.numerics import NumericsReport, OutputNumerics
from convmae_deploy.tasks import load_bundle
from export.reports.html_report import html_report, sentence
from export.reports.outcomes import not_run, verdict
from export.reports.plots import Series, layer_plot, scatter_plot, stage_of
from export.runtimes.combinations import Combination
from export.tasks.classification import ClassifiedData
from export.verification.layer_errors import LayerErrors, ModuleError
from export.verification.task_data import Agreement, TaskMetric
from export.verification.verify_runs import Outcome, Reference, Results, TaskOutcome
from tests.bundle_factory import make_bundle

NO_GPU = "device cuda needs a GPU, found none"
MODULES = ("encoder.blocks1.0.mlp.fc1", "encoder.blocks1.0", "encoder.blocks2.0", "head")


def layers(own: float) -> LayerErrors:
    modules = tuple(ModuleError(module=name, built_up_db=60.0 - 5 * i, own_db=own) for i, name in enumerate(MODULES))
    return LayerErrors(precision="fp16", modules=modules)


def outcome(runtime: str = "onnxruntime", *, excess: float = 0.2, reason: str | None = None) -> Outcome:
    combination = Combination(file="model.onnx", runtime=runtime, precision="fp32", reason=reason)
    if reason is not None:
        return Outcome(combination=combination)
    passed = excess <= 1
    numerics = OutputNumerics(
        max_abs=1e-5, max_rel=1e-6, cosine=1.0, snr_db=110.0, excess=excess, worst_input="photos batch 2", passed=passed
    )
    report = NumericsReport(
        runtime="onnxruntime 1.31.1",
        reference="torch",
        inputs=("random batch 1", "photos batch 2"),
        tolerance="close",
        outputs={"logits": numerics},
        passed=passed,
    )
    return Outcome(
        combination=combination,
        runtime="onnxruntime 1.31.1",
        report=report,
        task=TaskOutcome(
            metrics=(TaskMetric(name="top-1", value=79.0, samples=100),),
            agreement=Agreement(counted="photos that are no near tie", decided=99, agreeing=98),
            changes=Counter({(0, 1): 1}),
        ),
        scatter=(np.arange(5, dtype=np.float32), np.arange(5, dtype=np.float32)),
        problems=() if passed else ("worst output logits <b>is off</b>",),
    )


@pytest.fixture
def results(tmp_path: Path) -> Results:
    bundle = load_bundle(make_bundle(tmp_path / "bundle", classes=("a <script>", "b & c", "d")))
    return Results(
        bundle=bundle,
        reference=Reference(runner=lambda images: {}, title="torch 2.15", short="PyTorch", manifest=bundle.manifest),
        outcomes=(
            outcome(),
            outcome("openvino"),
            outcome("onnxruntime-cuda", reason=NO_GPU),
        ),
        reference_task=TaskOutcome(metrics=(TaskMetric(name="top-1", value=80.0, samples=100),)),
        data=ClassifiedData([Path("a.png")] * 100, [0] * 100, "photos"),
        layers={"model.fp16.onnx": layers(70.0)},
        notes=("the weights are others",),
    )


def page(results: Results) -> str:
    return html_report(results, ["python", "-m", "export.verify", "a bundle"])


def test_the_page_needs_no_other_file_and_no_script(results: Results) -> None:
    html = page(results)
    assert "<script" not in html and "http://" not in html and "https://" not in html
    assert not re.search(r"<(link|img|iframe)\b|\bsrc=|@import|url\(", html)
    assert html.startswith("<!doctype html>") and "prefers-color-scheme: dark" in html and "@media print" in html


def test_the_page_is_well_formed(results: Results) -> None:
    body = re.sub(r"<!doctype html>\n|<meta[^>]*>", "", page(results))
    root = ElementTree.fromstring(body)
    assert [heading.text for heading in root.iter("h2")] == [
        *("What was compared with what", "Files and runtimes", "On your own photos", "Where precision is lost"),
        *("Agreement", "Sizes", "Every output", "How this was made"),
    ]


@pytest.mark.slow
def test_the_verdict_comes_first_and_is_one_sentence(results: Results) -> None:
    html = page(results)
    assert "All holds: 1 file on 2 runtimes, 2 runs, against PyTorch." in html
    assert html.index("All holds") < html.index("<h2>")
    failing = replace(results, outcomes=(outcome(), outcome("openvino", excess=3.0)))
    assert verdict(failing) == "1 of 2 runs does not hold."
    assert 'class="verdict bad"' in page(failing) and "✗ fails" in page(failing)


def test_a_wrong_manifest_spoils_the_verdict_though_all_numbers_hold(results: Results) -> None:
    wrong = replace(results, manifest_problems=("the manifest's mean must be (1, 2, 3)",))
    assert verdict(wrong).startswith("The manifest is wrong, though the numbers of 1 file on 2 runtimes hold")
    assert "The manifest&#39;s mean must be (1, 2, 3)." in page(wrong)


def test_text_of_a_bundle_is_no_markup(results: Results) -> None:
    html = page(replace(results, outcomes=(outcome(excess=3.0),)))
    assert "a &lt;script&gt; → b &amp; c (1)" in html and "<b>is off</b>" not in html


def test_the_task_is_told_with_its_change_and_what_is_allowed(results: Results) -> None:
    html = page(results)
    for told in ("80.00 %", "79.00 %", "-1.00", "98 of 99", "±0.05 points, 0 differing"):
        assert f'<td class="number">{told}</td>' in html


def test_what_was_not_run_is_told_once_for_a_runtime_with_its_reason(results: Results) -> None:
    assert not_run(results) == [("ONNX Runtime CUDA", NO_GPU)]
    assert f"ONNX Runtime CUDA: {NO_GPU}." in page(results)


def test_hashes_versions_and_the_command_are_there(results: Results) -> None:
    html = page(results)
    assert results.bundle.manifest.files["model.onnx"].sha256 in html
    assert "python -m export.verify &#39;a bundle&#39;" in html and "onnxruntime 1.31.1" in html and "torch" in html


def marks(plot: str) -> list[ElementTree.Element]:
    """Of all series of a plot."""
    groups = [group for group in ElementTree.fromstring(plot).iter("g") if group.get("class") == "marks"]
    return [mark for group in groups for mark in group.iter("use")]


def test_each_layer_has_a_mark_that_says_its_number_and_exact_ones_have_none() -> None:
    series = [Series(label="model.fp16.onnx", colour=1, modules=layers(70.0).modules, gate_db=40.0)]
    built_up = layer_plot(series, own=False)
    titles = [mark.findtext("title") for mark in marks(built_up)]
    assert titles[0] == "encoder.blocks1.0.mlp.fc1: 60 dB (model.fp16.onnx)"
    assert titles[-1] == "head: 45 dB (model.fp16.onnx)" and len(titles) == len(MODULES)
    assert built_up.count('class="line"') == 1
    exact = [replace(series[0], modules=layers(200.0).modules)]
    assert not marks(layer_plot(exact, own=True))


def test_marks_are_higher_where_the_ratio_is() -> None:
    series = [Series(label="x", colour=0, modules=layers(70.0).modules, gate_db=None)]
    heights = [float(str(mark.get("y"))) for mark in marks(layer_plot(series, own=False))]
    assert heights == sorted(heights) and len(set(heights)) == len(MODULES)


def test_equal_values_lie_on_the_diagonal() -> None:
    values = np.array([-1.0, 0.5, 2.0], np.float32)
    dots = marks(scatter_plot(values, values, 0))
    sums = {round(float(str(dot.get("x"))) + float(str(dot.get("y"))), 1) for dot in dots}
    assert len(dots) == 3 and len(sums) == 1
    same = np.zeros(2, np.float32)
    assert len(marks(scatter_plot(same, same, 0))) == 2


def test_names_in_plots_are_neither_formulas_nor_markup_nor_left_out() -> None:
    modules = tuple(
        replace(module, module=f"$\\frac{{{index}\x07.<b>") for index, module in enumerate(layers(70.0).modules)
    )
    plot = layer_plot([Series(label="_<i>$x^2$", colour=0, modules=modules, gate_db=None)], own=True)
    assert "_&lt;i&gt;$x^2$" in plot and "$\\frac{0" in plot and "<b>" not in plot


def test_the_colours_of_plots_are_those_of_the_page_s_style() -> None:
    plot = layer_plot([Series(label="x", colour=3, modules=layers(70.0).modules, gate_db=40.0)], own=False)
    assert "var(--s3)" in plot and "var(--soft)" in plot and not re.search(r": #(?!000000)", plot)


def test_stages_are_the_first_names_of_a_path() -> None:
    assert [stage_of(module) for module in MODULES] == ["blocks1", "blocks1", "blocks2", "head"]
    assert stage_of("rpn.head.conv.0.0") == "rpn.head"


def test_clauses_become_sentences() -> None:
    assert sentence("the mean is wrong") == "The mean is wrong." and sentence("model.onnx fails") == "model.onnx fails."
