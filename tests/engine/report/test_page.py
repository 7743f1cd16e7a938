import base64
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from matplotlib.figure import Figure
from PIL import Image
from tests.conftest import slow_after
from tests.engine.report.real import (
    BACKBONE,
    all_converged,
    drop,
    estimate,
    of_probes,
    real_results,
    renamed,
    shortened,
    with_backbones,
    with_heads,
    without_classes,
)

from substyle.engine.report import page
from substyle.engine.report.answers import answer
from substyle.engine.report.data import show, show_interval
from substyle.engine.report.figures import FULL, _arrange, _box, _draw, _save, draw_plots, tip, wrapped
from substyle.engine.report.page import ReportFiles, read_gallery, soft
from substyle.engine.report.section import Answer, Panel, Plots, Section
from substyle.engine.stages.results import validate_results
from substyle.engine.study.report import write_report
from substyle.errors import SubstyleError

VOID = {"meta", "link", "img", "wbr", "br", "hr", "input", "line", "circle", "rect", "image", "polyline", "text"}
WORDS = ("original photographs", "transformed", "held out", "seen")
SECTIONS = """
    answers found claims overview transformation confusions held-out class together comparisons
    training few-shot parameters
    shortcut neighbours map geometry similarity shift mistakes attacks extractability complexity generators movement
    images run method
"""
FIGURES = "complexity map map_by_class movement overview parameters robustness shift similarity"
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Collects tags and text, and checks that tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID - {"text", "line", "circle", "rect", "image", "polyline"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.seen if tag == name]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def page_of(files: ReportFiles) -> Page:
    return Page(files.html.read_text(encoding="utf-8"))


def sections(page: Page) -> set[str | None]:
    return {attributes.get("id") for attributes in page.tags("section")}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("substyle.engine.report.page.draw_plots", draw_plots)
        return write_report(validate_results(real_results()), tmp_path_factory.mktemp("full"))


def test_a_full_page_has_every_section_and_its_entry(full: ReportFiles) -> None:
    page = page_of(full)
    expected = set(SECTIONS.split())
    assert sections(page) == expected
    assert {a["href"] for a in page.tags("a")} == {f"#{name}" for name in expected}


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


def test_the_page_has_one_word_for_each_thing(full: ReportFiles) -> None:
    whole = full.html.read_text(
        encoding="utf-8"
    )  # the table of comparisons names fields of files, and says what they are
    text = Page(re.sub('<section id="comparisons">.*?</section>', "", whole, flags=re.DOTALL)).text
    assert not re.findall(r"\b(unchanged|clean|obfuscated|untransformed)\b", text, re.IGNORECASE)
    assert set(WORDS) == set(re.findall("|".join(WORDS), text))


def test_plots_say_the_numbers_at_the_pointer(full: ReportFiles) -> None:
    titles = set(re.findall("<title>(.*?)</title>", full.html.read_text(encoding="utf-8")))
    count = real_results()["splits"]["test"]
    for name, backbone in real_results()["backbones"].items():
        style, nearest = backbone["transformation"]["linear"]["accuracy"], backbone["balance"]["same_image"]
        shown, low_high = show(style["value"]), show_interval((style["low"], style["high"]))
        assert f"{name}, linear probe: {shown} ({low_high}), n = {count:,} photographs" in titles
        shown, low_high = show(nearest["value"]), show_interval((nearest["low"], nearest["high"]))
        assert f"{name}, same photograph: {shown} ({low_high})" in titles


def test_the_page_has_the_verdicts_and_their_reasons(tmp_path: Path) -> None:
    results = real_results()
    text = page_of(write_report(validate_results(results), tmp_path)).text
    for claim in results["claims"]:
        assert claim["statement"] in text
        assert all(" ".join(reason.split()) in text for reason in claim["reasons"])
    assert "no masked model" in text
    results["claims"] = None
    assert "claims" not in sections(page_of(write_report(validate_results(results), tmp_path)))


def test_the_page_says_what_has_not_converged(tmp_path: Path) -> None:
    results = all_converged(real_results())
    assert "All probes have converged." in page_of(write_report(validate_results(results), tmp_path)).text
    results["backbones"][BACKBONE]["kind"]["mlp"]["converged"] = False
    assert f"{BACKBONE} (kind, MLP)" in page_of(write_report(validate_results(results), tmp_path)).text


def test_the_page_needs_no_network_and_runs_no_script(full: ReportFiles) -> None:
    text = full.html.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags("script") == []
    assert not re.search(r"\bhttps?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    for tag, attributes in page.seen:
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes)


def test_the_page_is_accessible_where_a_test_can_tell(full: ReportFiles) -> None:
    page = page_of(full)
    assert page.tags("html")[0]["lang"] == "en"
    assert len(page.tags("h1")) == 1
    assert all(th.get("scope") in ("col", "row", "rowgroup") for th in page.tags("th"))
    assert all(image.get("alt") for image in page.tags("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in page.tags("svg"))
    ids = [attributes["id"] for _, attributes in page.seen if "id" in attributes]
    assert len(ids) == len(set(ids))


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
    assert len(page.tags("section")) == rest.count('<details class="fold">') + 1  # all other sections are folded


@pytest.mark.usefixtures("figures")
def test_answers_are_those_of_the_sections(tmp_path: Path) -> None:
    """A stage of any name has its answer at the top; only the first three are there."""
    results = validate_results(with_heads(real_results("alpha")))
    plots = Plots("", (Panel("", lambda axis: axis.plot([1, 2])),))
    made = [Section(f"s{i}", "", f"T{i}?", (), Answer(f"Q{i}?", f"{i} px", EVIL, "text", plots)) for i in range(4)]
    for shown, expected in ((made[:1], 1), ([Section("none", "", "", ()), *made], 3)):
        text = page.write_report(results, tmp_path, shown).html.read_text(encoding="utf-8")
        top = text.partition('<section id="answers">')[2].partition("</section>")[0]
        assert re.findall(r"<h3>(Q\d\?)</h3>", top) == [f"Q{i}?" for i in range(expected)]
        assert top.count("<svg") == expected
        assert "<script" not in top


def test_an_answer_names_controls_and_what_has_not_converged() -> None:
    given = real_results("alpha", "beta", "control:pixels")
    given["backbones"]["control:pixels"]["transformation"]["linear"]["accuracy"] = estimate(0.9, 0.88, 0.92)
    given["backbones"]["beta"]["transformation"]["linear"]["converged"] = False
    style = answer(validate_results(given), "transformation")
    assert style is not None
    assert "A control leads: control:pixels" in style.text
    assert style.text.endswith("Excluded, not converged: beta.")
    only = answer(validate_results(real_results("control:pixels")), "transformation")
    assert only is not None
    assert "Only controls have a score." in only.text
    assert answer(validate_results(with_heads(real_results())), "transformation") is None


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_the_note_of_a_study_stands_below_its_name(tmp_path: Path) -> None:
    results = real_results("a")
    results["note"] = "Four & five crops."
    text = write_report(validate_results(results), tmp_path).html.read_text(encoding="utf-8")
    top, _, _ = text.partition('<section id="answers">')
    assert top.rstrip().endswith("<p>Four &amp; five crops.</p>\n</header>")


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


SHAPES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "one backbone": lambda results: with_backbones(results, "alpha"),
    "controls only": lambda results: with_backbones(results, "control:pixels"),
    "no backbone": with_backbones,
    "no classes": without_classes,
    "linear only": lambda results: with_heads(results, "linear"),
    "mlp only": lambda results: with_heads(results, "mlp"),
    "no probes": with_heads,
    "no multitask": lambda results: drop(results, "multitask"),
    "no analysis": of_probes,
    "four transformations": lambda results: shortened(results, 4),
    "identity alone": lambda results: shortened(results, 1),
    "no held-out transformation": lambda results: shortened(results, 3),
    "twelve long names": lambda results: with_backbones(results, *(f"{'long_name_' * 8}{i}" for i in range(12))),
    "an unbroken name": lambda results: with_backbones(results, "x" * 200),
}


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("shape", slow_after(3, SHAPES))
def test_every_shape_of_results_has_a_page(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but not saved, which takes most of the time."""
    monkeypatch.setattr("substyle.engine.report.figures._save", lambda figure, stem: [stem])
    page = page_of(write_report(validate_results(SHAPES[shape](real_results())), tmp_path))
    assert {"found", "images", "run", "method"} <= sections(page)
    assert "None" not in page.text
    assert "nan" not in page.text.split()
    if shape in ("no classes", "no probes"):
        assert not {"class", "together"} & sections(page)
    if shape == "no analysis":
        assert not {"neighbours", "geometry"} & sections(page)


def test_only_what_must_be_there(tmp_path: Path) -> None:
    transformations = [{"name": "identity", "kind": "identity", "role": "train"}]
    results = {"schema": 4, "name": "bare", "images": 0, "transformations": transformations, "backbones": {"a": {}}}
    files = write_report(validate_results(results), tmp_path)
    assert "There are no scores yet" in page_of(files).text
    assert files.tables == files.figures == ()


def test_what_backbones_cost_is_shown(tmp_path: Path) -> None:
    results = real_results("alpha")
    results["backbones"]["alpha"]["cost"] = {"device_hours": 0.194, "store_bytes": 126_976_000}
    page = write_report(validate_results(results), tmp_path).html.read_text()
    assert "<td>0.194</td><td>0.127</td>" in page
    for backbone in results["backbones"].values():
        del backbone["cost"]
    assert "<td>0.194</td>" not in write_report(validate_results(results), tmp_path).html.read_text()


def test_null_sections_are_like_missing_ones(tmp_path: Path) -> None:
    results = real_results("alpha")
    for key in (
        "suite",
        "version",
        "created",
        "splits",
        "chance",
        "quarantined",
        "indistinct",
        "throughput",
        "environment",
    ):
        results[key] = None
    results["comparisons"] = results["classes"] = results["claims"] = None
    backbone = results["backbones"]["alpha"]
    for key in list(backbone):
        backbone[key] = None
    backbone["transformation"] = {"linear": {"accuracy": estimate(0.5)}}
    page = page_of(write_report(validate_results(results), tmp_path))
    assert "Accuracy: inconclusive." in page.text
    assert "None" not in page.text


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
    expected = {f"{name}.{end}" for name in FIGURES.split() for end in ("pdf", "png")}
    assert {path.name for path in full.figures} == expected
    for path in full.figures:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert np.asarray(picture.convert("L")).std() > 5
        else:
            assert path.read_bytes().startswith(b"%PDF")


def test_a_figure_of_many_backbones_is_saved(tmp_path: Path) -> None:
    figure = Figure(figsize=(0.5, 400), layout="constrained")
    figure.subplots()
    _, picture = _save(figure, tmp_path / "map")
    with Image.open(picture) as image:
        assert image.height == pytest.approx(1 << 15, abs=2)


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_mathematics_in_names_does_not_stop_the_figures(tmp_path: Path) -> None:
    assert write_report(validate_results(real_results(r"$\frac{$")), tmp_path).figures


HOSTILE = '</text></svg><script>alert("x")</script> $\\frac{$ &amp; #1b1f24 1.23456 \x01 \udce9'


def hostile_plots(name: str = "") -> Plots:
    """Two equal plots with a hostile text wherever there is one."""

    def draw(axis: Any) -> None:  # noqa: ANN401
        (line,) = axis.plot([1, 2], [3, 4], "o", color=FULL, label=wrapped(HOSTILE))
        tip(line, HOSTILE)
        axis.set_title(wrapped(HOSTILE))
        axis.set_xticks([1], [wrapped(HOSTILE)])

    return Plots(name, (Panel(HOSTILE, draw, HOSTILE), Panel("b", draw)))


def test_texts_of_plots_are_escaped_and_shown_as_they_are(tmp_path: Path) -> None:
    block = hostile_plots()
    pictures, files = draw_plots([block], tmp_path)
    assert files == []
    assert list(tmp_path.iterdir()) == []
    key, first, second = pictures[block]
    shown = HOSTILE.replace("\x01", "\ufffd").replace("\udce9", "?")
    for picture in (key, first, second):
        page = Page(picture.svg)
        assert {tag for tag, _ in page.seen} <= {"svg", "g", "path", "defs", "use", "text", "title"}
        assert "".join(shown.split()) in "".join(page.text.split())
    titles = re.findall("<title>(.*?)</title>", first.svg)
    assert titles == [str(escape(HOSTILE.replace("\x01", "\ufffd").replace("\udce9", "\ufffd"))).replace("&#34;", '"')]


def test_plots_have_the_colours_and_the_font_of_the_page_and_ids_of_their_own(tmp_path: Path) -> None:
    blocks = [hostile_plots(), hostile_plots()]
    pictures, _ = draw_plots(blocks, tmp_path)
    text = "".join(picture.svg for block in blocks for picture in pictures[block])
    assert "fill: var(--full)" in text
    assert "fill: var(--ink)" in text
    assert not re.search(r'style="[^"]*(#1b1f24|#1f6fb5|#ffffff|font-family|url)', text)
    assert "clip-path" not in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(ids)
    again, _ = draw_plots(blocks, tmp_path)
    assert again == pictures
    variables = set(re.findall(r"var\((--\w+)\)", text))
    style = (Path(page.__file__).with_name("templates") / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    assert all(f"{name}:" in light and f"{name}:" in dark for name in variables)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_panels_of_a_file_do_not_overlap(count: int) -> None:
    def draw(axis: Any) -> None:  # noqa: ANN401
        axis.set(ylabel="y " * 20, xlabel="x", yticks=[0], yticklabels=["long name " * 3])

    block = Plots("a", tuple(Panel(str(at), draw) for at in range(count)), shared=True)
    figure, axes, _ = _draw(block, "")
    _arrange(figure, axes, block)
    boxes = [_box(figure, axis) for axis in axes]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(axis.get_window_extent().width / figure.dpi == pytest.approx(block.size[0]) for axis in axes)


def pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((224, 224, 3), 8 * i % 256, np.uint8)).save(folder / f"{name}.png")


def gallery_page(gallery: Path | None, out: Path) -> Page:
    return page_of(write_report(validate_results(real_results("alpha")), out, gallery=gallery))


def test_gallery_of_one_photograph_in_suite_order(tmp_path: Path) -> None:
    pictures(tmp_path / "gallery", ["swirl", "identity", "jpeg", "unknown"])
    (tmp_path / "gallery" / "notes.txt").write_text("not a picture")
    page = gallery_page(tmp_path / "gallery", tmp_path / "out")
    names = ("identity", "jpeg", "swirl")  # in a strip below the answers, and in the gallery
    assert [image["alt"] for image in page.tags("img")] == 2 * [f"The photograph after {name}" for name in names]
    for image in page.tags("img"):
        assert len(base64.b64decode(str(image["src"]).partition(",")[2])) < 5000


def test_gallery_of_several_photographs(tmp_path: Path) -> None:
    for i in range(6):
        pictures(tmp_path / "gallery" / str(i), ["identity", "jpeg"])
    page = gallery_page(tmp_path / "gallery", tmp_path / "out")
    assert len(page.tags("img")) == 2 + 8  # of four photographs, the first also in the strip
    assert "variants" in sections(page)


def test_a_gallery_has_few_pictures_of_many_variants(tmp_path: Path) -> None:
    """Three photographs in 75 variants take three megabytes."""
    names = [f"t{i:03d}" for i in range(120)]
    for folder in ("0", "1"):
        pictures(tmp_path / folder, names)
    assert [len(found) for found in read_gallery(tmp_path, names[:60])] == [60, 60]
    assert [len(found) for found in read_gallery(tmp_path, names[:61])] == [61]
    (whole,) = read_gallery(tmp_path, names)
    assert [picture.transformation for picture in whole] == names
    few, _ = read_gallery(tmp_path, names[:1])
    for photograph, side in ((whole, 120), (few, 160)):
        encoded = base64.b64decode(photograph[0].uri.partition(",")[2])
        assert Image.open(io.BytesIO(encoded)).size == (side, side)


def test_mistakes_with_and_without_a_picture(tmp_path: Path) -> None:
    results = real_results("alpha")
    rows = [
        {"key": EVIL, "transformation": "jpeg", "truth": "jpeg", "predicted": p, "confidence": c}
        for p, c in (("swirl", 0.991), ("elastic", 0.874))
    ]
    pictures(tmp_path / "mistakes" / "alpha", ["0"])
    rows[0]["picture"] = "alpha/0.png"
    results["backbones"]["alpha"]["mistakes"] = {
        "transformation": {"head": "linear", "scored": 1550, "wrong": 31, "rows": rows}
    }
    page = page_of(write_report(validate_results(results), tmp_path))
    assert "mistakes" in sections(page)
    assert "31 of 1,550 variants are wrong; the 2 most confident: jpeg → swirl, 99.1" in page.text
    assert f"{EVIL}, jpeg: jpeg → elastic, 87.4" in page.text
    assert [image["alt"] for image in page.tags("img")] == [f"{EVIL} after jpeg"]
    rows[1]["confidence"] = 1.5
    with pytest.raises(SubstyleError, match="confidence"):
        write_report(validate_results(results), tmp_path)


def test_no_gallery(tmp_path: Path) -> None:
    for gallery in (None, tmp_path / "missing", tmp_path):
        assert "variants" not in sections(gallery_page(gallery, tmp_path / "out"))


def test_a_gallery_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "identity.png").write_bytes(b"nothing")
    with pytest.raises(SubstyleError, match=r"identity\.png: not a picture"):
        gallery_page(tmp_path, tmp_path / "out")


def test_soft_names_break_and_stay_escaped() -> None:
    assert soft("control:random:vit_b") == "control:<wbr>random:<wbr>vit_<wbr>b"
    assert soft("two words") == "two <wbr>words"
    assert soft("<b>&x") == "&lt;b&gt;&amp;x"
    assert soft("rocket, 11.2%") == "rocket, <wbr>11.2%"
    assert soft("x" * 45).count("<wbr>") == 2
    assert soft("x" * 45).replace("<wbr>", "") == "x" * 45


# ---- in a browser, where there is one ----

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--hide-scrollbars",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]


def measured(html: Path, width: int, script: str, fragment: str = "") -> list[str]:
    """Run JavaScript on a page of a given width; returns what it measured, and checks that nothing is logged."""
    wrapper = html.with_name("wrapper.html")
    wrapper.write_text(
        f"""<iframe id=f src="{html.name}{fragment}" style="border:0;width:{width}px;height:900px"></iframe>
        <pre id=o></pre><script>f.onload = () => setTimeout(() => {{ const d = f.contentDocument; {script};
          o.textContent = 'MEASURED ' + found.join(' ') + ' END'; }}, 100)</script>"""
    )
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={html.parent / 'profile'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    (text,) = re.findall(r"<pre id=.o.>MEASURED (.*?) ?END", done.stdout)
    return text.split()


def test_a_transformation_can_be_highlighted_wherever_it_is_named(full: ReportFiles) -> None:
    page, names = page_of(full), [row["name"] for row in real_results()["transformations"]]
    ids = [a["id"] for a in page.tags("input") if a.get("id")]
    assert len(ids) == len(names)
    assert {a["for"] for a in page.tags("label") if "for" in a} == set(ids)
    for tag in ("tr", "g"):
        assert {a["data-t"] for a in page.tags(tag) if "data-t" in a} >= set(names) - {"identity"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_in_a_browser_a_click_on_a_name_highlights_it_everywhere(full: ReportFiles, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    html.write_text(full.html.read_text(encoding="utf-8"))
    marked = "const found = [...d.querySelectorAll('[data-t]')].filter(x => "
    marked += "getComputedStyle(x).outlineStyle == 'solid').map(x => x.dataset.t + ':' + x.tagName)"
    assert measured(html, 1280, marked) == []
    found = measured(html, 1280, f"d.querySelector('tr[data-t=jpeg] label').click(); {marked}")
    assert {"jpeg:TR", "jpeg:g"} <= set(found)
    assert all(each.startswith("jpeg:") for each in found)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser_nothing_overflows_and_nothing_is_logged(tmp_path: Path, width: int) -> None:
    names = (*(f"{'a_long_backbone_name.' * 4}{i}" for i in range(3)), "x" * 90)
    html = write_report(validate_results(real_results(*names)), tmp_path).html
    script = "d.querySelectorAll('details').forEach(x => x.open = true); const found = [d.documentElement.scrollWidth]"
    cut = "[...d.querySelectorAll('.scroll')].filter(x => x.scrollWidth > x.clientWidth && "
    cut += "/^(Backbones|Overview|Retrieval)/.test(x.ariaLabel)).map(x => x.ariaLabel.split(' ')[0])"
    wide, *labels = measured(html, width, f"{script}; found.push(...{cut})")
    assert int(wide) == width
    assert width == 400 or labels == []  # tables of backbones are not cut on a common screen


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_in_a_browser_a_link_opens_its_section_and_print_shows_all(full: ReportFiles, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    text = full.html.read_text(encoding="utf-8")
    html.write_text(text)
    shown = "const found = [...d.querySelectorAll('section')].filter(x => x.checkVisibility({contentVisibilityAuto: "
    shown += "true}) && x.getBoundingClientRect().height > 0).map(x => x.id)"
    assert measured(html, 1280, shown) == ["answers"]
    assert measured(html, 1280, shown, "#geometry") == ["answers", "geometry"]
    click = "d.querySelector('.answer a').click()"
    assert measured(html, 1280, f"{click}; {shown}") == ["answers", "transformation"]
    focus = "d.querySelector('.fold summary').focus(); const found = [d.activeElement.tagName]"
    assert measured(html, 1280, focus) == ["SUMMARY"]  # which browsers open by Enter and Space
    html.write_text(text.replace("@media print", "@media all"))
    wide = "d.documentElement.scrollWidth, getComputedStyle(d.querySelector('nav')).display"
    printed = measured(html, 720, f"{shown}; found.unshift({wide})")
    assert printed[:2] == ["720", "none"]
    assert set(printed[2:]) == sections(Page(text))
