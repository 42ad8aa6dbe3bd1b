"""Numbers whose protocols differ in any field never stand in one column, and the field is named."""

import copy
import json

import pytest

from atoken.errors import ReportError
from eval.compare import compare, plain
from eval.protocol import FORMAT, SHARED
from eval.run import measure
from tests.eval.small import Copy, job


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    return measure(job(count=6), tmp_path_factory.mktemp("rows"))


def written(path, *rows):
    path.write_text(json.dumps({"format": FORMAT, "rows": rows, "run": {}}))
    return path


def pair(folder, first, second):
    return compare([written(folder / "a.json", first), written(folder / "b.json", second)])


def columns(table):
    return [name for name in table.head if name.startswith("psnr [")]


def test_rows_of_one_protocol_stand_in_one_column(row, tmp_path):
    other = measure(job(count=6, model=Copy(noise=3)), tmp_path)
    found = pair(tmp_path, row, other)
    assert (found.refused, found.alone) == ((), ())
    (table,) = found.tables
    assert len(columns(table)) == 1
    place = table.head.index(columns(table)[0])
    shown = [cells[place] for cells in table.rows]
    assert shown == [f"{one['numbers']['psnr']['value']:.2f}" for one in (row, other)]
    lines = plain(table).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def fields(row):
    return [*SHARED, *(f"{metric}.{name}" for metric, record in row["protocol"]["metrics"].items() for name in record)]


def test_every_field_in_turn_is_refused_and_named(row, tmp_path):
    for field in fields(row):
        for change in ("set", "remove"):
            other = copy.deepcopy(row)
            metric, _, name = field.rpartition(".")
            block = other["protocol"]["metrics"][metric] if metric else other["protocol"]
            if change == "set":
                block[name] = "another"
            else:
                del block[name]
            if field == "task" and change == "set":  # the row says it, too
                other["task"] = "another"
            found = pair(tmp_path, row, other)
            assert any(name in line for line in found.refused), (field, change)
            assert field == "task" or f"{field} is " in "".join(found.refused), (field, change)
            touched = "error" if metric == "error" else "psnr"
            numbers = {"error": "mean error", "psnr": "psnr"}[touched]
            for table in found.tables:
                for place, head in enumerate(table.head):
                    if head.startswith(f"{numbers} ["):
                        assert sum(bool(cells[place]) for cells in table.rows) == 1, (field, change)


def test_a_metric_of_another_convention_leaves_the_others_comparable(row, tmp_path):
    other = copy.deepcopy(row)
    other["protocol"]["metrics"]["psnr"]["area"] = "foreground"
    found = pair(tmp_path, row, other)
    assert len(found.refused) == 1
    assert "psnr.area is full frame and foreground" in found.refused[0]
    assert found.refused[0].startswith("psnr, psnr of mean error of copy")
    assert found.refused[0].count(" is ") == 1  # no field that agrees
    assert [head for head in found.tables[0].head if head.startswith("mean error")]


def test_every_row_is_compared_with_all_before_it(row, tmp_path):
    """The first has no PSNR, the second and the third have it under different conventions."""
    first, third = copy.deepcopy(row), copy.deepcopy(row)
    first["numbers"] = {name: one for name, one in row["numbers"].items() if one["metric"] != "psnr"}
    third["protocol"]["metrics"]["psnr"]["area"] = "foreground"
    found = compare(
        [written(tmp_path / f"{name}.json", one) for name, one in {"a": first, "b": row, "c": third}.items()]
    )
    assert len(found.refused) == 1
    assert f"in {tmp_path / 'c.json'} cannot be compared with" in found.refused[0]
    assert f"in {tmp_path / 'b.json'}: psnr.area is full frame and foreground." in found.refused[0]


def test_fingerprints_that_a_file_states_are_not_believed(row, tmp_path):
    other = copy.deepcopy(row)
    other["protocol"]["filter"] = "bilinear"  # with the fingerprints of the other filter
    assert pair(tmp_path, row, other).refused


def test_identities_may_differ(row, tmp_path):
    other = copy.deepcopy(row)
    other |= {"model": "another", "identity": {"fingerprint": "f00"}}
    assert not pair(tmp_path, row, other).refused


def test_files_without_a_common_task_are_refused_and_others_say_what_is_alone(row, tmp_path):
    other = copy.deepcopy(row)
    other["task"] = other["protocol"]["task"] = "another"
    assert "no task in common: small, another" in pair(tmp_path, row, other).refused[0]
    both = compare([written(tmp_path / "a.json", row), written(tmp_path / "b.json", row, other)])
    assert both.refused == ()
    assert both.alone == (f"another: only in {tmp_path / 'b.json'}.",)


def test_a_partial_row_is_not_compared_with_a_whole_one(row, tmp_path):
    part = measure(job(count=6, unreadable=[2]), tmp_path)
    found = pair(tmp_path, row, part)
    assert any("items is 6 and 5" in line for line in found.refused)


def test_what_is_no_result_file_is_one_sentence(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ReportError, match="not a result file"):
        compare([tmp_path / "a.json"])
