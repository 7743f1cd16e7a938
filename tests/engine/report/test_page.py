import csv
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from tests.engine.report.html_page import Page
from tests.engine.report.real import BACKBONE, real_results, renamed, shortened

from substyle.engine.report.data import show, show_interval, signs
from substyle.engine.report.figures import draw_plots
from substyle.engine.report.page import ReportFiles, rate
from substyle.engine.report.tables import recall_interval
from substyle.engine.results.model import PlainScores, ProbeScores
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError

FIGURES = "balance complexity confusion_kind confusion_transformation fingerprint map map_by_class movement overview "
FIGURES += "parameters robustness shift similarity"
EVIL = '<script>alert("x")</script>'


def page_of(files: ReportFiles) -> Page:
    return Page(files.html.read_text(encoding="utf-8"))


def sections(page: Page) -> set[str | None]:
    return {attributes.get("id") for attributes in page.tags("section")}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("substyle.engine.report.page.draw_plots", draw_plots)
        return write_report(validate_results(real_results()), tmp_path_factory.mktemp("full"))


def test_the_page_holds_the_numbers(full: ReportFiles) -> None:
    text = page_of(full).text
    results = real_results()
    for backbone in results["backbones"].values():
        assert f"{100 * backbone['transformation']['linear']['accuracy']['value']:.1f}" in text
        assert f"{backbone['sensitivity']['swirl']['value']:.3f}" in text
        assert f"{100 * backbone['shift']['fog@1,fog@3']['accuracy']['value']:.1f}" in text
    assert "1.00000" in text  # the cosine of the gate
    assert "grayscale 31" in text
    assert "one generator" in text


def test_the_page_needs_no_network_and_runs_no_script(full: ReportFiles) -> None:
    text = full.html.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags("script") == []
    assert not re.search(r"\bhttps?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    for tag, attributes in page.seen:
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            beside = ("figures/", "tables/") if tag == "a" else ()
            assert (attributes.get(key) or "#").startswith(("#", "data:", *beside)), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes)


def test_the_first_three_answers_have_a_number_an_interval_and_a_plot(full: ReportFiles) -> None:
    page = page_of(full)
    top, _, rest = full.html.read_text(encoding="utf-8").partition('<section id="answers">')[2].partition("</section>")
    results = validate_results(real_results())
    for task, key, section, tested in (
        ("transformation", "accuracy", "transformation", "33 transformations"),
        ("kind_rotation", "accuracy", "held-out", "32 held-out transformations"),
        ("class", "transformed", "class", "32 transformations"),
    ):
        probes = [results.probe(name, task, "linear") for name in results.real()]
        best = max((probe for probe in probes if probe), key=lambda probe: getattr(probe, key).value)
        found = getattr(best, key)
        assert (found.one_way is not None) == (task == "kind_rotation")
        assert f">{show(found.value)}%</strong>" in top
        assert f"95% interval {show_interval((found.low, found.high))}; 32 photographs and {tested}; chance" in top
        assert f'href="#{section}"' in top
    assert top.count('<div class="answer">') == top.count("<svg") == 3
    assert len(page.tags("section")) == rest.count('<details class="fold">') + 3  # those in front are open


def test_tasks_and_parameters_are_in_words_and_signs_are_minus_signs(full: ReportFiles) -> None:
    text = page_of(full).text.partition("In short")[2]  # after the style sheet
    names = {row["name"] for row in real_results()["transformations"]}
    identifiers = set(re.findall(r"[a-z]+(?:_[a-z]+)+", re.sub("|".join(sorted(names, key=len)[::-1]), "", text)))
    assert not identifiers & {
        "kind_rotation",
        "held_out",
        "equal_rotation",
        "equal_transformation",
        "shift_x",
        "centre_y",
    }
    assert "horizontal shift" in text
    assert not re.findall(r"(?<![\w:=@])-\d[\d.]*", text)


@pytest.mark.usefixtures("figures")
def test_calibration_is_shown_before_and_after_the_temperature(tmp_path: Path) -> None:
    document = real_results(BACKBONE)
    assert "Calibration" not in page_of(write_report(validate_results(document), tmp_path)).text
    calibration = {"temperature": 1.25, "ece_before": 0.111, "ece": 0.0345}
    document["backbones"][BACKBONE]["class"]["linear"]["calibration"] = {"class": calibration}
    document["backbones"][BACKBONE]["class"]["mlp"]["calibration"] = {"class": None}
    files = write_report(validate_results(document), tmp_path)
    assert "11.1 3.5 1.250" in re.sub(r"\s+", " ", page_of(files).text)
    with (tmp_path / "tables" / "calibration.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [[BACKBONE, "class", "linear", "class", "0.111", "0.0345", "1.25"]]


def test_names_keep_their_hyphens() -> None:
    assert signs("steps 3, gain -0.02, -1") == "steps 3, gain −0.02, −1"
    assert signs("a-1, layer=-1") == "a-1, layer=-1"


def test_the_fingerprint_and_mistakes_follow_the_answers(full: ReportFiles) -> None:
    keys = [attributes["id"] for attributes in page_of(full).tags("section")]
    assert keys[:4] == ["answers", "transformation", "mistakes", "found"]


def test_each_cell_of_the_fingerprint_says_what_results_hold(full: ReportFiles) -> None:
    results = validate_results(real_results())
    cells = [tag["aria-label"] for tag in page_of(full).tags("input") if tag.get("aria-label")]
    first = cells[: len(results.backbones) * 33]
    expected = []
    for name, backbone in results.ordered().items():
        probe = backbone.probe("transformation", "linear")
        assert probe is not None
        assert probe.confusion is not None
        for truth, counts in zip(probe.confusion.labels, probe.confusion.counts, strict=True):
            right, total = counts[probe.confusion.labels.index(truth)], sum(counts)
            interval = binomtest(right, total).proportion_ci(method="exact")
            ends = show_interval((interval.low, interval.high))
            text = f"{name}, {truth}: {show(right / total)}% (95% interval {ends}); "
            wrong = {other: n for other, n in zip(probe.confusion.labels, counts, strict=True) if other != truth and n}
            text += f"most often taken for {max(wrong, key=lambda each: wrong[each])}" if wrong else "never mistaken"
            expected.append(text + (f" ({show(max(wrong.values()) / total)}%)" if wrong else ""))
    assert sorted(first) == sorted(expected)


@pytest.mark.parametrize("change", ["photographs", "resampled", "recall", "variants"])
def test_recalls_of_dependent_variants_have_no_interval(change: str) -> None:
    document = real_results(BACKBONE)
    probe = document["backbones"][BACKBONE]["transformation"]["linear"]
    before = recall_interval(validate_results(document), *_swirl(document))
    assert before is not None
    if change == "photographs":
        document["splits"]["test"] += 1
    if change == "resampled":
        del document["resampled"]
    if change == "recall":
        probe["by_transformation"]["swirl"] += 0.01
    if change == "variants":
        row = probe["confusion"]["labels"].index("swirl")
        probe["confusion"]["counts"][row] = [2 * count for count in probe["confusion"]["counts"][row]]
    assert recall_interval(validate_results(document), *_swirl(document)) is None


def _swirl(document: dict[str, Any]) -> tuple[ProbeScores | None, str, float]:
    probe = validate_results(document).probe(BACKBONE, "transformation", "linear")
    assert isinstance(probe, PlainScores)
    return probe, "swirl", (probe.by_transformation or {})["swirl"] or 0.0


@pytest.mark.usefixtures("figures")
def test_pictures_of_the_first_photograph_are_stored_once(tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    for at, name in enumerate(("identity", "swirl")):
        Image.new("RGB", (8, 8), (90 * at, 0, 0)).save(tmp_path / "gallery" / f"{name}.png")
    made = write_report(validate_results(real_results(BACKBONE)), tmp_path, gallery=tmp_path / "gallery")
    text = made.html.read_text(encoding="utf-8")
    assert text.count("image/jpeg;base64,") == 2
    tips = re.findall(r'<span class="tip".*?</span></span></label>', text, re.DOTALL)
    assert [tip.count('class="thumb ') for tip in tips if "<b>swirl</b>" in tip] == [2, 2]  # linear and MLP probes


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_equal_photographs_of_different_classes_are_named(tmp_path: Path) -> None:
    results = real_results("a")
    assert "Equal photographs" not in page_of(write_report(validate_results(results), tmp_path)).text
    results["conflicting_copies"] = [["a/1.jpg", "b/1.jpg"], [EVIL, "c"]]
    text = page_of(write_report(validate_results(results), tmp_path)).text
    assert f"tell apart: a/1.jpg and b/1.jpg; {EVIL} and c." in text


@pytest.mark.usefixtures("figures")
def test_names_and_keys_are_escaped_everywhere(tmp_path: Path) -> None:
    names = {"zoom_blur": EVIL + "t", "blur": "blur" + EVIL, "brick": EVIL, "fog@1,fog@3": EVIL}
    results = renamed(shortened(real_results(EVIL + "a", "control:" + EVIL), 5), names) | {"name": EVIL}
    results["quarantined"] = [{"key": EVIL, "reason": EVIL}, {"key": "not utf-8: \udce9.jpg", "reason": "x"}]
    results["environment"] = {EVIL: EVIL}
    results["note"] = EVIL
    results["transformations"][4]["parameters"] = [{"name": EVIL, "unit": EVIL, "one_of": [EVIL, [1, 2]]}]
    for backbone in results["backbones"].values():
        backbone["spec"] = dict.fromkeys(
            ("architecture", "pooling", "input_side", "weights", "weights_hash", "licence"), EVIL
        )
    text = write_report(validate_results(results), tmp_path).html.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "alert" in Page(text).text
    assert "alert" not in text.partition("</style>")[0].partition("<style>")[2]


def test_bad_results_write_nothing(tmp_path: Path) -> None:
    results = real_results()
    results["schema"] = 99
    with pytest.raises(SubstyleError, match="schema"):
        write_report(validate_results(results), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    results = real_results("alpha")
    first, second = (write_report(validate_results(results), tmp_path / name) for name in ("a", "b"))
    for a, b in zip(
        (first.html, *first.tables, *first.figures), (second.html, *second.tables, *second.figures), strict=True
    ):
        assert a.read_bytes() == b.read_bytes(), a
    assert not list(tmp_path.rglob("*.part"))


def test_figures_for_papers(full: ReportFiles) -> None:
    expected = {f"{name}.{end}" for name in FIGURES.split() for end in ("pdf", "png", "svg")}
    assert {path.name for path in full.figures} == expected
    for path in full.figures:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert np.asarray(picture.convert("L")).std() > 5
        else:
            assert path.read_bytes().startswith({".pdf": b"%PDF", ".svg": b"<?xml"}[path.suffix])


def test_each_plot_links_to_its_files(full: ReportFiles) -> None:
    links = [tag.get("href") or "" for tag in page_of(full).tags("a")]
    linked = {full.html.parent / link for link in links if not link.startswith("#")}
    assert set(full.figures) <= linked
    assert linked <= {*full.figures, *full.tables}
    figures = re.findall(r'<div class="plots">.*?</div>\s*(.{15})', full.html.read_text("utf-8"), re.DOTALL)
    assert figures
    assert all(after.startswith('<p class="note ') for after in figures)


# ---- in a browser, where there is one ----

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless --hide-scrollbars --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --allow-file-access-from-files "
    "--virtual-time-budget=5000 --enable-logging=stderr --v=0 --dump-dom"
)


def measured(html: Path, width: int, script: str, fragment: str = "") -> list[str]:
    """Run JavaScript on a page of a given width; returns what it measured, and checks that nothing is logged."""
    wrapper = html.with_name("wrapper.html")
    wrapper.write_text(
        f"""<iframe id=f src="{html.name}{fragment}" style="border:0;width:{width}px;height:900px"></iframe>
        <pre id=o></pre><script>f.onload = () => setTimeout(() => {{ const d = f.contentDocument; {script};
          o.textContent = 'MEASURED ' + found.join(' ') + ' END'; }}, 100)</script>"""
    )
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={html.parent / 'profile'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    (text,) = re.findall(r"<pre id=.o.>MEASURED (.*?) ?END", done.stdout)
    return text.split()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_in_a_browser_a_link_opens_its_section_and_print_shows_all(full: ReportFiles, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    text = full.html.read_text(encoding="utf-8")
    html.write_text(text)
    shown = "const found = [...d.querySelectorAll('section')].filter(x => x.checkVisibility({contentVisibilityAuto: "
    shown += "true}) && x.getBoundingClientRect().height > 0).map(x => x.id)"
    front = ["answers", "transformation", "mistakes"]
    assert measured(html, 1280, shown) == front
    assert measured(html, 1280, shown, "#geometry") == [*front, "geometry"]
    click = "d.querySelectorAll('.answer .more a')[1].click()"
    assert measured(html, 1280, f"{click}; {shown}") == [*front, "held-out"]
    choose = "d.querySelectorAll('.strip input')[5].click(); const found = [...d.querySelectorAll('.strip .tip')]"
    choose += ".flatMap((x, at) => getComputedStyle(x).display == 'none' ? [] : [at])"
    assert measured(html, 400, f"{choose}; found.unshift(d.documentElement.scrollWidth)")[:2] == ["400", "5"]
    focus = "d.querySelector('.fold summary').focus(); const found = [d.activeElement.tagName]"
    assert measured(html, 1280, focus) == ["SUMMARY"]  # which browsers open by Enter and Space
    html.write_text(text.replace("@media print", "@media all"))
    wide = "d.documentElement.scrollWidth, getComputedStyle(d.querySelector('nav')).display"
    printed = measured(html, 720, f"{shown}; found.unshift({wide})")
    assert printed[:2] == ["720", "none"]
    assert set(printed[2:]) == sections(Page(text))


@pytest.mark.parametrize(("per_s", "text"), [(0.0088, "114 s each"), (0.5, "2 s each"), (1.0, "1"), (452.3, "452"),
                                             (0.0, "0"), (None, "–")])  # fmt: skip
def test_slow_rates_are_told_in_seconds(per_s: float | None, text: str) -> None:
    assert rate(per_s) == text
