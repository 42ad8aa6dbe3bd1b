"""ADM's files: what numpy writes is read, what is written numpy reads, and nothing is unpickled."""

import io
import zipfile

import numpy as np
import pytest

from atoken.errors import MediaError
from atoken.metrics.frechet import Gaussian
from eval.adm import holds, read_labels, read_samples, read_statistics, write_statistics
from tests.eval.plain_network import images


def gaussian(width, items=None):
    rows = np.random.default_rng(width).normal(size=(50, width))
    return Gaussian(rows.mean(0), np.cov(rows, rowvar=False), items)


def with_member(path, name, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    return path


def header(described):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def test_statistics_come_back_and_numpy_reads_them(tmp_path):
    path, moments = tmp_path / "s.npz", {"pooled": gaussian(5, 50), "spatial": gaussian(4, 50)}
    write_statistics(path, moments, "ab" * 32)
    for found in (read_statistics(path), read_statistics(path, "ab" * 32)):
        assert list(found) == ["pooled", "spatial"]
        for kind, one in found.items():
            assert (one.mean_D == moments[kind].mean_D).all()
            np.testing.assert_allclose(one.covariance_DD, moments[kind].covariance_DD, rtol=1e-15)
            assert one.items == 50
    with np.load(path, allow_pickle=False) as file:
        assert (file["mu"] == moments["pooled"].mean_D).all()
        assert (file["sigma_s"] == moments["spatial"].covariance_DD).all()


def test_statistics_of_others_are_read(tmp_path):
    one = gaussian(6)
    np.savez(tmp_path / "a.npz", mu=one.mean_D.astype(np.float32), sigma=np.asfortranarray(one.covariance_DD))
    np.savez_compressed(tmp_path / "b.npz", arr_0=images(1, 3), mu=one.mean_D, sigma=one.covariance_DD)
    for name in "ab":
        found = read_statistics(tmp_path / f"{name}.npz", "c" * 64)
        assert list(found) == ["pooled"]
        assert found["pooled"].items is None
        np.testing.assert_allclose(found["pooled"].covariance_DD, one.covariance_DD)
    assert holds(tmp_path / "b.npz") == {"arr_0", "mu", "sigma"}


def test_a_covariance_with_rounding_errors_is_made_symmetric(tmp_path):
    """Such as other tools write; an eigenvalue decomposition reads one triangle alone."""
    skew = np.array([[0, 1e-3, 0], [-1e-3, 0, 2e-3], [0, -2e-3, 0]])
    one = gaussian(3)
    np.savez(tmp_path / "a.npz", mu=one.mean_D, sigma=one.covariance_DD + skew)
    found = read_statistics(tmp_path / "a.npz")["pooled"].covariance_DD
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(found, one.covariance_DD, rtol=1e-12, atol=1e-15)


def test_statistics_of_another_network_are_refused(tmp_path):
    write_statistics(tmp_path / "s.npz", {"pooled": gaussian(5)}, "a" * 64)
    with pytest.raises(MediaError, match="network aaaaaaaa…, not bbbbbbbb…"):
        read_statistics(tmp_path / "s.npz", "b" * 64)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_samples_come_one_by_one(tmp_path, save):
    every = images(1, 7)
    save(tmp_path / "a.npz", every)  # arr_0, as ADM's scripts have it
    assert (np.stack(list(read_samples(tmp_path / "a.npz"))) == every).all()


def test_python_objects_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    trap = np.empty((2, 2, 2, 3), object)
    trap[:] = Trap()
    np.savez(tmp_path / "a.npz", arr_0=trap, mu=trap[0, 0], sigma=trap[0, 0])
    assert not (tmp_path / "sprung").exists()
    for read in (read_statistics, lambda path: list(read_samples(path))):
        with pytest.raises(MediaError, match="Python objects"):
            read(tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()


def test_other_arrays_are_refused(tmp_path):
    for array, why in (
        (np.zeros((2, 4, 4, 3)), "must be uint8"),
        (np.zeros((2, 4, 4), np.uint8), "must be uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), "must be uint8"),
        (np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)), "by columns"),
        (np.zeros((1, 2, 20_000, 3), np.uint8), "over the limit"),
    ):
        np.savez(tmp_path / "a.npz", arr_0=array)
        with pytest.raises(MediaError, match=why):
            list(read_samples(tmp_path / "a.npz"))
    not_finite = np.array([[1, np.inf], [np.inf, 1]])
    for mean, covariance in (
        (np.zeros(3), np.zeros((4, 4))),
        (np.array([0, np.nan]), np.eye(2)),
        (np.zeros(2), not_finite),
        (0, 1),
    ):
        np.savez(tmp_path / "a.npz", mu=mean, sigma=covariance)
        with pytest.raises(MediaError, match="not a finite mean"):
            read_statistics(tmp_path / "a.npz")


def test_damaged_files_are_one_sentence(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(MediaError, match="no such file"):
        holds(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(MediaError, match=r"not an \.npz file"):
        holds(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(MediaError, match="has no array arr_0"):
        list(read_samples(path))
    short = header({"descr": "|u1", "fortran_order": False, "shape": (5, 4, 4, 3)}) + bytes(100)
    with pytest.raises(MediaError, match="ends in the middle"):
        list(read_samples(with_member(path, "arr_0.npy", short)))
    for shape in ((1 << 40,), (-3,), (9, 9, 9)):
        huge = header({"descr": "<f8", "fortran_order": False, "shape": shape}) + bytes(100)
        with pytest.raises(MediaError, match=r"not a statistic|plain array"):
            read_statistics(with_member(path, "mu.npy", huge))
    with pytest.raises(MediaError, match=r"it is damaged, or not an \.npz file"):
        read_statistics(with_member(path, "mu.npy", b"\x93NUMPY\x01\x00\x04\x00oops"))
    whole = io.BytesIO()
    np.savez_compressed(whole, arr_0=images(1, 9))
    data = bytearray(whole.getvalue())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(MediaError):
        list(read_samples(path))


@pytest.mark.parametrize(
    ("labels", "classes"), [([0.5, 1], ["a", "b"]), ([[0, 1]], ["a", "b"]), ([0, 2], ["a", "b"]), ([-1, 0], ["a"])]
)
def test_what_are_no_labels_is_said(tmp_path, labels, classes):
    np.savez(tmp_path / "a.npz", images(1, 2), np.array(labels), classes=classes)
    with pytest.raises(MediaError, match="not a label for each sample"):
        read_labels(tmp_path / "a.npz")


def test_labels_come_with_the_names_that_a_file_has(tmp_path):
    np.savez(tmp_path / "a.npz", images(1, 2), np.array([1, 0]), classes=["a ring", "b"])
    np.savez(tmp_path / "b.npz", images(1, 2), np.array([999, 0]))
    np.savez(tmp_path / "c.npz", images(1, 2))
    assert read_labels(tmp_path / "a.npz") == ([1, 0], ("a ring", "b"))
    assert read_labels(tmp_path / "b.npz") == ([999, 0], ())
    with pytest.raises(MediaError, match="has no array arr_1"):
        read_labels(tmp_path / "c.npz")
