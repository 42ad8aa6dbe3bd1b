"""Fingerprints change with every field that must agree, and with nothing else."""

import dataclasses
import json

import pytest

from eval.prepare import Preparation
from eval.protocol import SETTINGS, EvalProtocol, data_hash, digest, fingerprint, settings

PSNR = {"peak": "255", "mean": "over samples"}


def made(**changes):
    fields = {"task": "t", "data": "ab", "items": 3, "templates": "none", "code": "1+2", **Preparation().record()}
    return EvalProtocol(**fields | settings({}) | {"metrics": {"psnr": PSNR, "ssim": {"window": "11"}}} | changes)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EvalProtocol) if field.name != "metrics"])
def test_every_shared_field_changes_every_fingerprint(name):
    plain, other = made(), made(**{name: 4 if name == "items" else "another"})
    assert plain.fingerprint("psnr") != other.fingerprint("psnr")
    assert plain.fingerprint("ssim") != other.fingerprint("ssim")


def test_the_record_of_a_metric_changes_its_own_fingerprint_alone():
    for record in ({**PSNR, "peak": "1"}, {**PSNR, "more": "x"}, {"peak": "255"}, {}):
        other = made(metrics={"psnr": record, "ssim": {"window": "11"}})
        assert other.fingerprint("psnr") != made().fingerprint("psnr")
        assert other.fingerprint("ssim") == made().fingerprint("ssim")


def test_a_metric_that_one_lacks_leaves_the_others_alone():
    assert made(metrics={"psnr": PSNR}).fingerprint("psnr") == made().fingerprint("psnr")


def test_a_fingerprint_is_short_and_survives_json():
    record = json.loads(json.dumps(made().record()))
    assert fingerprint(record, "psnr") == made().fingerprint("psnr")
    assert len(made().fingerprint("psnr")) == 8


def test_a_field_that_an_older_file_lacks_does_not_agree():
    record = made().record()
    del record["filter"]
    assert fingerprint(record, "psnr") != made().fingerprint("psnr")


def test_a_metric_without_a_record_does_not_agree_with_one_of_no_conventions():
    assert made(metrics={}).fingerprint("psnr") != made(metrics={"psnr": {}}).fingerprint("psnr")


def test_the_order_of_names_does_not_matter():
    turned = made(metrics={"ssim": {"window": "11"}, "psnr": dict(reversed(PSNR.items()))})
    assert turned.fingerprint("psnr") == made().fingerprint("psnr")
    record = made().record()
    assert fingerprint(dict(reversed(record.items())), "psnr") == made().fingerprint("psnr")
    assert digest({"a": {"x": 1, "y": 2}, "b": 3}) == digest({"b": 3, "a": {"y": 2, "x": 1}})


def test_all_fields_are_text_or_counts():
    kinds = {field.name: field.type for field in dataclasses.fields(EvalProtocol)}
    assert {kind for name, kind in kinds.items() if name != "metrics"} == {"str", "int"}


def test_settings_of_a_model_have_defaults_and_its_identity_is_not_among_them():
    assert settings({"fingerprint": "f00", "quality": "80"}) == SETTINGS
    assert settings({"dtype": "bfloat16", "seed": "3", "latents": "sample"}) == {
        **SETTINGS, "dtype": "bfloat16", "latents": "sample", "seed": "3",
    }  # fmt: skip


def test_the_hash_of_data_is_of_its_lines_in_order():
    assert data_hash(["a", "b"]) != data_hash(["b", "a"])
    assert data_hash(["a", "b"]) != data_hash(["ab"])
    assert data_hash(iter(["a\udc80", "b"])) == data_hash(["a\udc80", "b"])
