"""``fairseq-star report``: one page of a run that a browser shows whole, and one line where there is no such run."""

import base64
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairseq_star.analysis.curves import read_events, read_log
from fairseq_star.analysis.profile import ProfileResult, ProfileRow
from fairseq_star.analysis.report import html, sections
from fairseq_star.analysis.report.report import report
from fairseq_star.analysis.runs import load_run
from fairseq_star.cli import main
from fairseq_star.fairseq_hooks.sliced import FILE
from fairseq_star.slicing.report import SlicingReport
from tests.support import browser, tiny
from tests.support.runs import hydra_arguments, run

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra [report])")
pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra [report])")

PHONES = ["sil", "h", "aI", "sil"]
HOSTILE = "<script>alert(1)</script>"


def probe_result() -> dict:
    """What ``fairseq-star probe --json`` prints, for one task."""
    rows = [
        {"task": "phone", "features": name, "accuracy": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.03}
        for name, accuracy in (("FBANK", 0.421), (HOSTILE, 0.5), ("student", 0.637), ("teacher", 0.7))
    ]
    return {"rows": rows, "margin_kept": {"phone": [0.685, 0.6, 0.75]}, "seeds": [0, 1]}


def profile_result() -> ProfileResult:
    """What ``fairseq-star profile --json`` prints, times invented."""
    rows = [
        ProfileRow("a/teacher.pt", "HuBERT", 4000, 5000, 0.5, 111.0, 1.0, 0.0234, 12.0),
        ProfileRow("b/student.pt", "STaRHuBERT", 1000, 1000, 0.2, 30.0, 0.27, 0.0111, 7.0),
    ]
    return ProfileResult(rows, seconds=10.0, num_threads=1, device="cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """A corpus whose valid utterances have phones and a transcript."""
    root = tiny.write_corpus(tmp_path_factory.mktemp("labelled"))
    with open(root / "valid.tsv") as manifest:
        lengths = [int(line.split("\t")[1]) for line in list(manifest)[1:]]
    frames = [(length - 400) // 320 + 1 for length in lengths]
    (root / "valid.phn").write_text("".join(" ".join(np.repeat(PHONES, n)[:n]) + "\n" for n in frames))
    (root / "audio" / "valid" / "a.trans.txt").write_text("utt000 NO\nutt002 HI & BYE\n")
    return root


@pytest.fixture(scope="module")
def run_dir(labelled, teacher_path, tmp_path_factory) -> Path:
    """A short run, its log in JSON beside it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    logging = [f"common.tensorboard_logdir={folder / 'tensorboard'}", "common.log_format=json"]
    logging += ["++task.log_tgm_maps=2"]
    steps = ["optimization.max_update=8", "optimization.lr=[0.01]", "dataset.validate_interval_updates=4"]
    done = run(hydra_arguments(labelled, teacher_path, folder, *logging, *steps))
    assert done.returncode == 0, done.stderr
    (folder / "train.log").write_text(done.stdout)
    (folder / "probe.json").write_text(json.dumps(probe_result()))
    (folder / "profile.json").write_text(json.dumps(profile_result().to_dict()))
    return folder


@pytest.fixture(scope="module")
def page(run_dir, tmp_path_factory) -> Path:
    return report(run_dir, tmp_path_factory.mktemp("page") / "seen.html", layers=[2])


def images(page: Path) -> list[bytes]:
    """PNGs of the light page and of the dark one."""
    found = re.findall(r'(?:src|srcset)="data:image/png;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    return [base64.b64decode(data, validate=True) for data in found]


def test_page_is_whole(page, run_dir):
    text = page.read_text(encoding="utf-8")
    assert "Did it learn?" in text
    student = load_run(str(run_dir / "checkpoint_last.pt"), option="test").model
    assert f"{sum(p.numel() for p in student.parameters()):,} of " in text
    for shown in (
        "<td>student.pt</td>",
        "<td>0.0111</td>",
        "<b>27%</b>",
        "“Hi &amp; bye”",
        "42.1 % (40.1 to 45.1)",
        "68 % (60 to 75)",
        "encoder_embed_dim: 16",
        "<h2>Is the run well?</h2>",
        "Finished after update 8 of 8.",
        torch.__version__,
    ):
        assert shown in text

    # Nothing is fetched, nothing runs, and what a file says stays text.
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert set(re.findall(r'(?:src|srcset|href)="([a-z]+:)', text)) == {"data:"}
    assert "url(" not in text

    pictures = sorted((page.parent / "seen").glob("*.png"))
    names = {path.stem for path in pictures}
    terms = {f"losses_{term}" for term in ("loss", "layerwise", "intra_layer")}
    maps = {f"tgm_layer02_{which}" for which in ("teacher", "student", "before", "difference")}
    assert names == terms | maps | {"cka", "cka_by_layer", "tgm_error", "probe_phone"}
    in_page = images(page)
    assert len(in_page) == 2 * len(pictures)
    assert {path.read_bytes() for path in pictures} <= set(in_page)
    for data in in_page:
        picture = Image.open(io.BytesIO(data)).convert("L")
        assert picture.width > 400
        assert picture.getextrema()[1] - picture.getextrema()[0] > 100  # not a blank one


@pytest.mark.skipif(browser.find_chromium() is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_browser_shows_every_picture(page, width, dark, tmp_path):
    found = browser.look(page, width, dark, tmp_path / "page.png")
    assert len(found["widths"]) == 11
    assert min(found["widths"]) > 400, "a picture does not show"
    assert found["shown"] == 11
    assert found["overflow"] == 0
    assert found["console"] == []
    assert found["dark"] == dark
    shot = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert shot.shape[0] == found["height"] > 1500
    assert (shot[:200, 0].mean() < 60) == dark


@pytest.mark.skipif(browser.find_chromium() is None, reason="no Chromium here: apt-get install chromium")
def test_browser_sees_what_is_wrong(tmp_path):
    """The check above can fail: a broken picture, a page too wide, an error."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!doctype html><img src="data:image/png;base64,AAAA"><div style="width:600px">x</div>'
        "<script>console.error('told')</script>"
    )
    found = browser.look(bad, 390)
    assert found["widths"] == [0]
    assert found["overflow"] > 100
    assert any("told" in line for line in found["console"])


def test_losses_are_the_logged_ones(run_dir):
    """TensorBoard's files and fairseq's JSON output tell the same story."""
    events, log = read_events(run_dir / "tensorboard"), read_log(run_dir / "train.log")
    terms = ["loss", "layerwise", "intra_layer"]
    assert {*terms} <= events.train.keys() & log.train.keys()
    assert sorted(events.train["loss"]) == sorted(log.train["loss"]) == list(range(1, 9))
    assert sorted(events.valid["loss"]) == sorted(log.valid["loss"]) == [3, 4, 6, 8]
    for term in terms:
        for curves in ("train", "valid"):
            left, right = getattr(events, curves)[term], getattr(log, curves)[term]
            assert [left[step] for step in left] == pytest.approx([right[step] for step in left], rel=1e-3)


def test_maps_of_the_run(run_dir):
    """``task.log_tgm_maps``: pictures of every second validation in TensorBoard, at the update they were drawn at."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = run_dir / "tensorboard" / "tgm_maps"
    events = event_accumulator.EventAccumulator(str(folder), {"images": 0}).Reload()
    # Validations are at 3 (an epoch's end), 4, 6 and 8.
    assert [image.step for image in events.Images("tgm_layer02/student")] == [3, 6]


def test_simple_log(tmp_path):
    """fairseq's other format, its lines as hydra and fairseq-train print them."""
    path = tmp_path / "train.log"
    path.write_text(
        "[2026-11-23 08:46:45,602][train_inner][INFO] - epoch 001:     20 / 125 loss=5286.67, layerwise=2726.32, "
        "wps=839.6, num_updates=20, lr=0.002, wall=24\n"
        "2026-11-23 08:47:14 | INFO | train_inner | epoch 001:     40 / 125 loss=3.6e+03, num_updates=40, lr=1e-05\n"
        "[2026-11-23 08:48:29,920][valid][INFO] - epoch 001 | valid on 'valid' subset | loss 2403.35 | layerwise "
        "1263.71 | wps 801.4 | num_updates 40 | best_loss 2403.35\n"
        "[2026-11-23 08:48:29,920][fairseq.trainer][INFO] - loss=1, num_updates=50\n"
    )
    losses = read_log(path)
    assert losses.train["loss"] == {20: 5286.67, 40: 3600.0}
    assert losses.valid["loss"] == {40: 2403.35}
    assert losses.train["layerwise"] == {20: 2726.32}


def test_where_a_sliced_run_began(run_dir, page, tmp_path):
    """A section of its own, before what was learned; none where first weights were random."""
    begun = SlicingReport(
        utterances=64, seconds_of_audio=480.0, layers=[1, 2, 3], unexplained=[0.1, 0.2, 0.3, 0.4], at_zero=[],
        left_out=[], scale=(0.9, 1.2), wall_seconds=33.4, loss=1234.5, loss_of_zero=9876.5, held_out=16,
    )  # fmt: skip
    (tmp_path / "checkpoint_last.pt").write_bytes((run_dir / "checkpoint_last.pt").read_bytes())
    torch.save({"report": begun.to_dict()}, tmp_path / FILE)
    text = report(tmp_path, layers=[1]).read_text(encoding="utf-8")
    for shown in (
        "<h2>Where it began</h2>",
        "sliced out of the teacher with 64 utterances (8.0 minutes of audio) in 33 seconds.",
        "Its loss before the first update was 1,234.5; that of an all-zero student is 9,876.5.",
    ):
        assert shown in text
    picture = Image.open(tmp_path / "report" / "slicing.png").convert("L")
    assert picture.getextrema()[1] - picture.getextrema()[0] > 100
    assert "<h2>Where it began</h2>" not in page.read_text(encoding="utf-8")

    unmeasured = replace(begun, loss=None, loss_of_zero=None)
    text = "".join(sections.beginning(html.Pictures(), unmeasured))
    assert "in 33 seconds.</p>" in text
    assert "before the first update was" not in text
    assert sections.beginning(html.Pictures(), None) == []


def test_a_run_without_record(run_dir, tmp_path):
    """No log, no labels, no probe: the page says so and has the rest."""
    bare = tmp_path / "bare"
    bare.mkdir()
    state = torch.load(run_dir / "checkpoint_last.pt", weights_only=True)
    state["cfg"]["common"]["tensorboard_logdir"] = None
    torch.save(state, bare / "checkpoint_last.pt")
    (bare / "other.log").write_bytes(b"\xff\xfe no log")
    text = report(bare, layers=[1]).read_text(encoding="utf-8")
    assert "No record of the losses" in text
    assert "fairseq-star probe" in text
    assert (bare / "report" / "tgm_layer01_teacher.png").is_file()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: None, r"is no folder"),
        (lambda folder: folder.mkdir(), r"holds neither checkpoint_best.pt nor checkpoint_last.pt"),
        (lambda folder: write(folder / "checkpoint_best.pt", b"PK\x03\x04"), r"checkpoint_best.pt .* is truncated"),
    ],
)
def test_no_run_there(tmp_path, spoil, message):
    spoil(tmp_path / "run")
    with pytest.raises(SystemExit, match=message) as stopped:
        main(["report", str(tmp_path / "run")])
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("tensorboard/train/events.out.tfevents.1", b"no events", [], r"tensorboard: its event files hold no losses"),
        ("probe.json", b"{", [], r"probe.json: is no result of `fairseq-star probe"),
        ("probe.json", b'{"rows": [1], "margin_kept": {}, "seeds": []}', [], r"probe.json: is no result"),
        ("profile.json", b"[]", [], r"profile.json: is no result of `fairseq-star profile"),
        ("x", b"", ["--layers", "4"], r"--layers 4: the student has layers 1 to 3"),
        ("x", b"", ["--utterance", "nobody"], r"--utterance nobody: not in .*valid.tsv; utt000 is there"),
        ("x", b"", ["--out", "here"], r"--out here: name the page to write, such as report.html"),
        ("x", b"", ["--split", "test"], r"test.tsv: cannot read the manifest"),
    ],
)
def test_wrong_input(run_dir, tmp_path, name, content, options, message):
    folder = tmp_path / "run"
    folder.mkdir()
    os.link(run_dir / "checkpoint_last.pt", folder / "checkpoint_last.pt")
    write(folder / name, content)
    with pytest.raises(SystemExit, match=message) as stopped:
        main(["report", str(folder), *options])
    assert "\n" not in str(stopped.value)


def test_missing_extra_is_named(run_dir, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"need matplotlib: pip install 'fairseq-star\[report\]'"):
        main(["report", str(run_dir)])


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
