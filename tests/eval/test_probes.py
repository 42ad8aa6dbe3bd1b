"""The probes against closed forms, second implementations, and what must be so when features know all or nothing."""

import numpy as np
import pytest
import scipy.optimize
from PIL import Image as Images

import atoken
from atoken.data.synthetic.artificial import figure_painter
from atoken.data.synthetic.labelled import FIGURE_PROMPTS, WAYS
from atoken.data.synthetic.procedural import generator
from atoken.data.synthetic.textures import Surface
from atoken.errors import AtokenError
from eval.contract import Output
from eval.probes import dense, figures, linear, pooled
from tests.tolerances import EXACT, LBFGS, LEAST_SQUARES


def clouds(rng, classes, each, width, spread):
    """Points around one middle a class, in turn, and their labels."""
    labels = np.tile(np.arange(classes), each)
    return rng.normal(size=(classes, width))[labels] + spread * rng.normal(size=(len(labels), width)), labels


# ---------------------------------------------------------------------------------------------------------- readers


@pytest.mark.parametrize("strength", [1e-4, 0.3, 50])
def test_ridge_is_least_squares_with_rows_for_the_penalty(strength):
    rng = np.random.default_rng(1)
    x, y = rng.normal(-1, 4, (60, 5)), rng.normal(size=(60, 2))
    scaled = (x - x.mean(0)) / x.std(0)
    rows = np.r_[scaled, np.sqrt(60 * strength) * np.eye(5)]
    best = np.linalg.lstsq(rows, np.r_[y - y.mean(0), np.zeros((5, 2))], rcond=None)[0]
    assert np.abs(linear.ridge(x, y, strength)(x) - (scaled @ best + y.mean(0))).max() < LEAST_SQUARES


def test_ridge_without_penalty_is_plain_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (80, 7)) * np.logspace(-3, 3, 7), rng.normal(size=(80, 4))
    best = np.linalg.lstsq(np.c_[x, np.ones(80)], y, rcond=None)[0]
    assert np.abs(linear.ridge(x, y, 0)(x) - np.c_[x, np.ones(80)] @ best).max() < LEAST_SQUARES


@pytest.mark.parametrize("fit", [linear.ridge, linear.logistic])
def test_readers_do_not_see_units_and_leave_constants_out(fit):
    rng = np.random.default_rng(2)
    x, y, units = rng.normal(size=(50, 4)), np.eye(3)[rng.integers(0, 3, 50)], np.array([1e-4, 1, 30, 1e5])
    other = np.c_[x * units + 5, np.full(50, 7.3)]
    plain, more = fit(x, y, 0.1), fit(other, y, 0.1)
    assert np.abs(plain(x) - more(other)).max() < (LEAST_SQUARES if fit is linear.ridge else LBFGS)
    assert (more.weights[-1] == 0).all()


@pytest.mark.parametrize("fit", [linear.ridge, linear.logistic])
def test_the_best_strength_tells_best_what_is_held_out(fit):
    rng = np.random.default_rng(4)
    x, labels = clouds(rng, 3, 20, 5, 2.5)
    y, checks = np.eye(3)[labels], np.arange(60) % 3 == 0
    errors = []
    for strength in linear.STRENGTHS:
        scores = fit(x[~checks], y[~checks], strength)(x[checks])
        chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        squares = np.square(scores - y[checks]).sum(1).mean()
        errors.append(squares if fit is linear.ridge else -np.log((chances * y[checks]).sum(1)).mean())
    wanted = fit(x, y, linear.STRENGTHS[int(np.argmin(errors))])
    assert len({*errors}) > 1
    assert np.abs(linear.best(fit, x, y, checks)(x) - wanted(x)).max() == EXACT


def test_logistic_regression_is_at_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(5)
    x, labels = clouds(rng, 3, 25, 4, 1.0)
    x = x * (1, 20, 0.01, 3) + (0, 5, 0, 100)
    shares = rng.random((75, 1)) * (0.8 * np.eye(3)[labels] + 0.2 * rng.dirichlet(np.ones(3), 75))  # some count less
    scaled, strength, total = (x - x.mean(0)) / x.std(0), 0.05, shares.sum()

    def objective(flat):
        weights, bias = flat[:12].reshape(4, 3), flat[12:]
        scores = scaled @ weights + bias
        chances = np.exp(scores - scores.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        off = (chances * shares.sum(1, keepdims=True) - shares) / total
        value = -(shares * np.log(chances)).sum() / total + strength / 2 * np.square(weights).sum()
        return value, np.r_[(scaled.T @ off + strength * weights).ravel(), off.sum(0)]

    best = scipy.optimize.minimize(objective, np.zeros(15), jac=True, method="BFGS", options={"gtol": 1e-10})
    scores = scaled @ best.x[:12].reshape(4, 3) + best.x[12:]
    assert np.abs(linear.logistic(x, shares, strength)(x) - scores).max() < LBFGS
    assert linear.cross_entropy(scores, shares) == pytest.approx(
        best.fun - strength / 2 * np.square(best.x[:12]).sum(), rel=LEAST_SQUARES
    )


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(broken):
    x, labels = clouds(np.random.default_rng(6), 2, 8, 3, 0.1)
    x[5, 1] = broken
    for probe in (
        lambda: linear.ridge(x, np.eye(2)[labels], 0.1),
        lambda: linear.logistic(x, np.eye(2)[labels], 0.1),
        lambda: pooled.knn(x, labels, x, labels),
        lambda: pooled.probe_vectors(x, labels),
    ):
        with pytest.raises(AtokenError, match="NaN or infinite"):
            probe()


# ----------------------------------------------------------------------------------------------------------- pooled


def test_classes_that_lie_apart_are_all_found():
    x, labels = clouds(np.random.default_rng(7), 6, 12, 10, 0.01)
    numbers = pooled.probe_vectors(x, labels + 100)
    sizes = {"chance": 1 / 6, "classes": 6, "learned": 54, "tested": 18}
    assert numbers == {"knn": 1.0, "linear": 1.0, "ridge": 1.0} | {
        name: pytest.approx(size) for name, size in sizes.items()
    }


def test_random_labels_are_found_by_chance():
    rng = np.random.default_rng(8)
    x, labels = rng.normal(size=(1200, 6)), np.tile(np.arange(4), 300)
    numbers = pooled.probe_vectors(x, labels)
    sigma = np.sqrt(0.25 * 0.75 / numbers["tested"])
    assert numbers["tested"] == 300
    assert numbers["chance"] == 0.25
    for name in ("knn", "linear", "ridge"):
        assert abs(numbers[name] - 0.25) < 3 * sigma


def test_knn_is_brute_force():
    rng = np.random.default_rng(9)
    (x, labels), k = clouds(rng, 5, 30, 4, 1.5), 7
    tests, truth = clouds(rng, 5, 54, 4, 1.5)  # more than one chunk
    hits = 0
    for test, own in zip(tests, truth, strict=True):
        near = sorted((-(test @ one) / np.linalg.norm(test) / np.linalg.norm(one), n) for n, one in enumerate(x))[:k]
        votes = [sum(np.exp(-c / pooled.TEMPERATURE) for c, n in near if labels[n] == label) for label in range(5)]
        hits += all(votes[own] > vote for label, vote in enumerate(votes) if label != own)
    assert pooled.knn(x, labels, tests, truth, k) == hits / len(tests)
    assert 0 < hits < len(tests)


def test_ties_are_misses():
    same = np.ones((8, 3))
    assert pooled.knn(same, np.arange(8) % 2, same, np.arange(8) % 2) == 0
    assert pooled.wins(np.array([[1.0, 1.0], [2.0, 1.0], [np.nan, 0.0]]), np.array([0, 0, 0])) == 1


def test_each_class_is_learned_and_tested():
    labels = np.array([3] * 8 + [1] * 2 + [0] * 5)
    chosen = pooled.held_out(labels)
    assert chosen.nonzero()[0].tolist() == [6, 7, 9, 14]
    with pytest.raises(AtokenError, match="one item only"):
        pooled.held_out(np.array([0, 0, 1]))
    with pytest.raises(AtokenError, match="zero and have no direction"):
        pooled.knn(np.zeros((4, 2)), np.zeros(4, int), np.ones((4, 2)), np.zeros(4, int))


class MeanColour:
    """A model whose vector is the colour of the middle, which tells the tint of a figure and nothing of its shape."""

    name, record = "mean colour", {}

    def embed(self, items):
        found = []
        for item in items:
            middle = item.media.pixels[8:-8, 8:-8].reshape(-1, 3).astype(np.float64)
            found.append(Output(item, vector=np.r_[np.median(middle, 0), middle.std(0), 1].astype(np.float32)))
        return found


def test_a_model_is_probed_on_labelled_images():
    vectors, labels = pooled.vectors_of(MeanColour(), pooled.labelled_items(4, 32))
    assert vectors.shape == (4 * WAYS, 7)
    assert (np.bincount(labels) == 4).all()
    numbers = pooled.probe_vectors(vectors, figures.SETS["colour"][1 + labels])
    assert numbers["linear"] > 2 * numbers["chance"]
    with pytest.raises(AtokenError, match="got none"):
        pooled.vectors_of(MeanColour(), [])


# ------------------------------------------------------------------------------------------------------------ masks


def painter(seed: int, figure: str, height: int, width: int):
    surface = Surface(generator(seed, 0, figures._MASKED), height, width)
    return figure_painter(surface, figure, np.array([200, 40, 90], np.float32))


def test_opacity_says_what_a_figure_covers():
    for seed in range(6):
        lay, place = painter(seed, figures.FIGURES[seed], 60, 80), (np.array([37.3, 31.8]), 21.0, 0.4)
        found = figures.opacity(lay, 60, 80, *place)
        canvas = Images.fromarray(generator(seed, 1, 0).integers(0, 256, (60, 80, 3), np.uint8))
        before = np.asarray(canvas).copy()
        lay(canvas, *place)
        assert (np.asarray(canvas)[found == 0] == before[found == 0]).all()
        assert (np.asarray(canvas) != before).any(-1)[found == 1].mean() > 0.95
        assert found.min() >= 0
        assert found.max() == 1


def test_a_circle_covers_its_area():
    found = figures.opacity(painter(0, "circle", 128, 128), 128, 128, np.array([64.2, 63.1]), 40.0, 0.0)
    assert found.sum() == pytest.approx(np.pi * 40**2, rel=0.08)  # its outline may be drawn 1.5 pixels outside


def test_masked_images_are_functions_of_their_index():
    first, second = list(figures.masked_images(5, 2, 64)), list(figures.masked_images(5, 2, 64))
    assert all(
        (a.pixels == b.pixels).all() and (a.classes == b.classes).all() for a, b in zip(first, second, strict=True)
    )
    assert (first[0].pixels != first[1].pixels).any()
    assert first[0].pixels.shape == (64, 64, 3)
    many = [image.classes for image in figures.masked_images(6, 40, 64)]
    counts = [len(np.unique(classes)) - 1 for classes in many]
    assert set(counts) == {1, 2, 3}
    assert all(classes.min() >= 0 and classes.max() <= WAYS for classes in many)
    assert 0.2 < np.mean([classes > 0 for classes in many]) < 0.6


def test_the_sets_are_those_of_the_classes():
    assert figures.SETS["figure"].tolist() == [0] + [1] * WAYS
    assert len(set(zip(figures.SETS["shape"], figures.SETS["colour"], strict=True))) == 1 + WAYS
    for name, answer in (("shape", "star"), ("colour", "teal")):
        table = figures.SETS[name]
        asked = [1 + label for label, prompt in enumerate(FIGURE_PROMPTS) if answer in prompt]
        assert (table == table[asked[0]]).nonzero()[0].tolist() == asked
        assert sorted(set(table)) == [figures.IGNORED, *range(table.max() + 1)]


# ------------------------------------------------------------------------------------------------------------ dense


def squares(count, rng, side=32, patch=8):
    """Images of classes 0 to 2 by whole patches, and noise for pixels."""
    for _ in range(count):
        coarse = rng.integers(0, 3, (side // patch, side // patch))
        yield figures.Masked(
            rng.integers(0, 256, (side, side, 3), np.uint8), np.kron(coarse, np.ones((patch, patch), int))
        )


SETS = {"three": np.array([0, 1, 2]), "two": np.array([figures.IGNORED, 0, 1])}  # of two the ground does not count


def test_features_that_know_all_reach_the_ceiling_and_noise_stays_at_chance():
    images = {kind: list(squares(24, np.random.default_rng(seed))) for seed, kind in enumerate(("training", "tested"))}
    known = {image.pixels.tobytes(): image.classes[::8, ::8] for of in images.values() for image in of}
    knows = dense.segmentation_probe(lambda pixels: np.eye(3)[known[pixels.tobytes()]], **images, sets=SETS)
    for name in SETS:
        assert knows[f"{name}/tokens"] == 1
        assert knows[f"{name}/miou"] == pytest.approx(knows[f"{name}/ceiling"], abs=0.01)
        assert knows[f"{name}/ceiling"] > 0.8
        assert knows[f"{name}/chance"] < 0.6
    noise = np.random.default_rng(3)
    blind = dense.segmentation_probe(lambda pixels: noise.normal(size=(4, 4, 5)), **images, sets=SETS)
    tokens = 24 * 16
    assert abs(blind["three/tokens"] - 1 / 3) < 3 * np.sqrt(2 / 9 / tokens)
    assert blind["three/chance"] == knows["three/chance"]


def test_numbers_are_those_of_a_plain_count():
    rng = np.random.default_rng(11)
    learned, tested = list(squares(8, rng)), list(squares(3, rng))
    features = {image.pixels.tobytes(): rng.normal(size=(4, 4, 6)) for image in learned + tested}
    found = dense.segmentation_probe(lambda pixels: features[pixels.tobytes()], learned, tested, SETS)
    x = np.concatenate([features[image.pixels.tobytes()].reshape(-1, 6) for image in learned])
    labels = np.concatenate([image.classes[::8, ::8].ravel() for image in learned])
    checks, truth = np.repeat(np.arange(8) % 4 == 3, 16), np.stack([image.classes for image in tested])
    for name, asked in (("three", (0, 1, 2)), ("two", (1, 2))):
        of = np.isin(labels, asked)
        reader = linear.best(linear.logistic, x[of], (labels[of, None] == asked) * 1.0, checks[of])
        scores = [reader(features[image.pixels.tobytes()]) for image in tested]
        answers = np.array(asked)[np.stack([dense.enlarged(one, 32, 32).argmax(-1) for one in scores])]
        answers[~np.isin(truth, asked)] = -1
        ious = [((truth == c) & (answers == c)).sum() / ((truth == c) | (answers == c)).sum() for c in asked]
        assert found[f"{name}/miou"] == pytest.approx(np.mean(ious), rel=LEAST_SQUARES)
        own = np.stack([image.classes[::8, ::8] for image in tested])
        told, counted = np.array(asked)[np.argmax(scores, -1)], np.isin(own, asked)
        assert found[f"{name}/tokens"] == (told == own)[counted].mean()
        places = np.sum([np.array([(p.classes[::8, ::8] == c) for c in asked]) for p in learned], 0).argmax(0)
        assert found[f"{name}/tokens-chance"] == (np.array(asked)[places] == own)[counted].mean()


def test_mean_iou_counts_the_classes_that_occur():
    confusion = np.array([[6, 2, 0], [1, 3, 1], [0, 0, 0]])
    assert dense.mean_iou(confusion) == pytest.approx((6 / 9 + 3 / 7) / 2)


def test_enlarging_is_linear_between_the_middles_of_tokens():
    scores = np.stack([np.arange(4.0), 7 - 2 * np.arange(4.0)], -1)[None].repeat(2, 0)  # (2, 4, 2)
    large = dense.enlarged(scores, 8, 32)
    across = np.clip((np.arange(32) + 0.5) / 8 - 0.5, 0, 3)
    assert np.abs(large - np.stack([across, 7 - 2 * across], -1)).max() < LEAST_SQUARES


def test_what_cannot_be_probed_is_refused():
    rng = np.random.default_rng(12)

    def read(pixels):
        return np.zeros((4, 4, 2))

    with pytest.raises(AtokenError, match="needs 4 training images, got 3"):
        dense.segmentation_probe(read, squares(3, rng), squares(1, rng), SETS)
    with pytest.raises(AtokenError, match="no image to test on"):
        dense.segmentation_probe(read, squares(4, rng), [], SETS)
    with pytest.raises(AtokenError, match="whole tokens"):
        dense.segmentation_probe(read, squares(4, rng, side=30, patch=10), squares(1, rng), SETS)


def test_tokens_and_pixels_are_read_in_their_places():
    tokenizer, image = atoken.load("nano", device="cpu"), figures.masked_image(1, 0, 48, 64)
    encoded = tokenizer.encode(image.pixels)
    latents = dense.tokens_of(tokenizer, "latents")(image.pixels)
    assert latents.shape == (3, 4, 48)
    for latent, (_, row, column, _) in zip(encoded.latents.numpy(), encoded.coords.tolist(), strict=True):
        assert (latents[row, column] == latent).all()
    assert dense.tokens_of(tokenizer, "features")(image.pixels).shape == (3, 4, tokenizer.model.config.encoder_width)
    pixels = dense.pixels_of(image.pixels)
    patch = image.pixels[16:32, 48:64].reshape(-1) / 127.5 - 1
    assert np.abs(pixels[1, 3] - patch).max() < 1e-6
