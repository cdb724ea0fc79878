"""The benchmark of the compressed cache: a row for each way, and errors that grow as less is kept."""

import json

from benchmarks import cache
from benchmarks.models import write_student
from tests.support import tiny


def test_a_row_for_each_way(corpus, teacher_path, tmp_path, capsys):
    student = write_student(tmp_path / "mine.pt", **tiny.STUDENT)
    cache.main(
        [
            *("--data", str(corpus), "--teacher", str(teacher_path), "--student", str(student), "--frames", "200"),
            *("--out", str(tmp_path)),
        ]
    )
    (numbers,) = tmp_path.glob("cache-*.json")
    assert numbers.with_suffix(".md").read_text().strip() == capsys.readouterr().out.strip()
    rows = json.loads(numbers.read_text())["rows"]
    assert list(rows) == ["float16", "int8", "pca, 24", "pca, 12", "pca, 6"]
    bytes_an_hour = [row["gb_an_hour"] for row in rows.values()]
    assert bytes_an_hour[0] > bytes_an_hour[1] == bytes_an_hour[2] > bytes_an_hour[3] > bytes_an_hour[4]
    for error in (lambda row: row["gram"], *(lambda row, s=s: row["gradient"][s] for s in (cache.NEAR, "mine"))):
        pca = [error(rows[f"pca, {dim}"]) for dim in (24, 12, 6)]
        assert 0 < error(rows["float16"]) < pca[0] < pca[1] < pca[2]
