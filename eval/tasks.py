"""Every task is a row of data: where its data set is, how items are prepared, what is measured.

To add one, add a row to ``TASKS``. What the paper leaves open is decided here, and is in the protocol of every number:
frames (all up to 300; for retrieval 12 of those at one a second, evenly, as in CLIP4Clip), cameras (16, black
background), templates (80 of OpenAI), which captions of COCO (those of the test split of Karpathy and Fei-Fei).

    ROOT/imagenet/val/SYNSET/*.JPEG     ROOT/imagenet-v2/0..999/*.jpeg
    ROOT/coco/val2017/*.jpg, annotations/, dataset_coco.json, val2014/*.jpg
    ROOT/flickr30k/dataset_flickr30k.json, images/*.jpg
    ROOT/davis/JPEGImages/1080p/VIDEO/*.jpg   ROOT/tokenbench/**/*.mp4   ROOT/toys4k/CLASS/**/*.obj
    ROOT/msr-vtt/MSRVTT_JSFUSION_test.csv, videos/*.mp4
    ROOT/msvd/test_list.txt, raw-captions.pkl (or captions.txt), videos/*.avi
    ROOT/kodak/*.png   ROOT/videos/*.mp4, *.mkv   (docs/data.md)

Photographs and furniture are in the cache of ``atoken fetch``.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import get_args

from atoken.modalities import ASSET
from eval import measures
from eval.job import Modality, Task
from eval.metrics.zero_shot import A_PHOTO, CLASS_NAME_ONLY, OPENAI
from eval.models.answers import guesses, guesses_and_tower
from eval.prepare import Preparation
from eval.sources import captions, folders, questions, samples, synthetic

_SQUARE = Preparation("adm", 256)
_RETRIEVED = Preparation("centre", 224, frames=12, fps=Fraction(1), spread=True)
_FROM_16_SIDES = Preparation(views=16, view_size=256)
_SEEN_SMALL = Preparation("naflex", 64, "bilinear")  # about 128 x 128 pixels: nano learns what images show at 64 to 160
_OF_VIDEO = measures.PIXELS | measures.BLOCKING_IN_TIME | measures.RFVD
_ZERO_SHOT, _RETRIEVAL = measures.ZERO_SHOT, measures.RETRIEVAL
_FRAMES = {"pool": "frames"}  # the vector of a video is the mean of its frames' vectors
_IMAGENET = partial(folders.class_folders, classes=folders.IMAGENET)
_TOYS = partial(folders.class_folders, modality=ASSET)
_COARSENED_ASSETS = 144  # three rounds of the 48 classes


def _by_name(*tasks: Task) -> dict[str, Task]:
    return {task.name: task for task in tasks}


def _at_three_sizes(name: str, row: Callable[[str, Preparation], Task]) -> list[Task]:
    """A task for each size at which images are understood: so many tokens, by the side of a square of as many."""
    sides = {256: 256, 384: 576, 512: 1024}
    return [row(f"{name}-{side}", Preparation("naflex", tokens, "bilinear")) for side, tokens in sides.items()]


_PUBLISHED = _by_name(
    Task("imagenet-256", "image", "imagenet/val", folders.images, _SQUARE, measures.IMAGES | measures.RFID,
         full=50_000, shard=1000, batch=16, table3=True),
    *_at_three_sizes("imagenet-zero-shot", lambda name, prepare: Task(
        name, "image", "imagenet/val", _IMAGENET, prepare, _ZERO_SHOT, "embed", 50_000, OPENAI, 1000, 16,
        table3=name.endswith("256"))),
    *_at_three_sizes("imagenet-v2-zero-shot", lambda name, prepare: Task(
        name, "image", "imagenet-v2", _IMAGENET, prepare, _ZERO_SHOT, "embed", 10_000, OPENAI, 1000, 16)),
    Task("coco-256", "image", "coco/val2017", folders.images, _SQUARE, measures.IMAGES | measures.RFID,
         full=5_000, shard=500, batch=16),
    *_at_three_sizes("coco-retrieval", lambda name, prepare: Task(
        name, "image", "coco", partial(captions.split_file, name="dataset_coco.json"), prepare, _RETRIEVAL, "embed",
        5_000, shard=500, batch=16)),
    Task("coco-2017-retrieval-256", "image", "coco", captions.coco, Preparation("naflex", 256, "bilinear"),
         _RETRIEVAL, "embed", 5_000, shard=500, batch=16),
    *_at_three_sizes("flickr30k-retrieval", lambda name, prepare: Task(
        name, "image", "flickr30k", partial(captions.split_file, name="dataset_flickr30k.json"), prepare, _RETRIEVAL,
        "embed", 1_000, shard=200, batch=16)),
    Task("davis", "video", "davis/JPEGImages/1080p", folders.frame_folders, Preparation(frames=300), _OF_VIDEO, full=50,
         shard=2, batch=1),
    Task("tokenbench", "video", "tokenbench", folders.videos, Preparation("short side at most", 720, frames=300),
         _OF_VIDEO, full=471, shard=8, batch=1, table3=True),
    Task("msr-vtt-retrieval", "video", "msr-vtt", captions.msr_vtt, _RETRIEVED, _RETRIEVAL, "embed", 1_000, shard=50,
         model=_FRAMES, table3=True),
    Task("msvd-retrieval", "video", "msvd", captions.msvd, _RETRIEVED, _RETRIEVAL, "embed", 670, shard=50,
         model=_FRAMES),
    Task("toys4k", "asset", "toys4k", folders.meshes, Preparation(), measures.VIEWS,
         full=3_229, shard=32, batch=1, table3=True),
    Task("toys4k-zero-shot", "asset", "toys4k", _TOYS, Preparation(), _ZERO_SHOT, "embed", 3_229,
         OPENAI, 32, 1, table3=True),
)  # fmt: skip

_SYNTHETIC = _by_name(
    Task("procedural-images", "image", None, synthetic.images, Preparation(), measures.IMAGES | measures.NANO),
    Task("procedural-videos", "video", None, synthetic.videos, Preparation(), measures.PIXELS | measures.NANO_VIDEOS,
         shard=8, batch=2),
    Task("procedural-assets", "asset", None, synthetic.assets, _FROM_16_SIDES, measures.VIEWS, shard=4, batch=1),
    Task("procedural-voxels", "asset", None, synthetic.assets, _FROM_16_SIDES, measures.PSNR, shard=4, batch=1,
         model={"patches": True}),
    Task("procedural-images-zero-shot", "image", None, synthetic.labelled_images, Preparation(), _ZERO_SHOT, "embed",
         templates=CLASS_NAME_ONLY, batch=16),
    Task("procedural-videos-zero-shot", "video", None, synthetic.labelled_videos, Preparation(), _ZERO_SHOT, "embed",
         templates=CLASS_NAME_ONLY),
    Task("procedural-videos-zero-shot-frames", "video", None, synthetic.labelled_videos, Preparation(), _ZERO_SHOT,
         "embed", templates=CLASS_NAME_ONLY, model=_FRAMES),
    Task("procedural-assets-zero-shot", "asset", None, synthetic.labelled_assets, _FROM_16_SIDES, _ZERO_SHOT, "embed",
         templates=CLASS_NAME_ONLY, shard=16, batch=1),
    *(Task(f"procedural-assets-zero-shot-{voxels}", "asset", None,
           partial(synthetic.labelled_assets, many=_COARSENED_ASSETS), _FROM_16_SIDES, _ZERO_SHOT, "embed",
           templates=CLASS_NAME_ONLY, shard=16, batch=1, model={"voxels": voxels}) for voxels in (512, 4096)),
    Task("procedural-retrieval", "image", None, synthetic.captioned_images, Preparation(), _RETRIEVAL, "embed",
         batch=16),
    Task("procedural-scenes-retrieval", "image", None, synthetic.scenes, Preparation(), _RETRIEVAL, "embed", batch=16),
    *(Task(f"procedural-{name}", "video", None, source, Preparation(), measures.CHOICE, "embed") for name, source in
      {"motions": synthetic.motions, "directions": synthetic.directions, "speeds": synthetic.speeds}.items()),
    *(Task(f"procedural-{name}", "image", None, source, Preparation(), measures.CHOICE, "embed", batch=16) for
      name, source in {"counts": synthetic.counts, "relations": synthetic.relations,
                       "orders": synthetic.orders}.items()),
    Task("code-usage", "image", None, synthetic.coded_images, Preparation(), measures.USAGE),
)  # fmt: skip


def _of_photos(split: str) -> list[Task]:
    """The tasks of a split of the photographs of clothes and groceries: ``test``, or ``validation`` to choose by."""
    kinds = {"clothes": samples.clothes, "groceries": samples.groceries}
    return [
        Task(f"photos-{split}", "image", f"fetched:photos/{split}", samples.photos, Preparation(), measures.IMAGES,
             shard=126, batch=6),
        *(Task(f"photos-{split}-{kind}-zero-shot", "image", f"fetched:photos/{split}",
               partial(samples.photos, class_of=class_of), _SEEN_SMALL, _ZERO_SHOT, "embed", templates=A_PHOTO,
               shard=128, batch=16) for kind, class_of in kinds.items()),
        *(Task(f"photos-{split}-{kind}-probe", "image", "fetched:photos",
               partial(samples.photos_to_probe, class_of=class_of, tested=split), _SEEN_SMALL, measures.PROBE,
               "embed", shard=128, batch=16) for kind, class_of in kinds.items()),
    ]  # fmt: skip


_REAL = _by_name(
    Task("kodak", "image", "kodak", folders.images, Preparation(), measures.IMAGES, full=24, shard=4, batch=1),
    Task("photographs", "image", "", synthetic.photographs, Preparation(), measures.IMAGES, shard=1, batch=1),
    *_of_photos("test"),
    *_of_photos("validation"),
    Task("sample-videos", "video", "videos", folders.videos, Preparation("short side at most", 256, frames=48),
         _OF_VIDEO, full=13, shard=1, batch=1),
    Task("furniture-test", "asset", "fetched:furniture/test", samples.furniture, _FROM_16_SIDES, measures.VIEWS,
         shard=4, batch=1),
    Task("furniture-test-zero-shot", "asset", "fetched:furniture/test",
         partial(samples.furniture, class_of=samples.noun), _FROM_16_SIDES, _ZERO_SHOT, "embed",
         templates=CLASS_NAME_ONLY, shard=4, batch=1, model={"voxels": 4096}),
)  # fmt: skip

# Of vision-language models, --model vl:MODEL.
_ASKED = _by_name(
    *(Task(f"vqa-{modality}s", modality, None, partial(questions.synthetic, modality=modality), _FROM_16_SIDES,
           measures.ACCURACY, "answer", shard=20, batch=1, further=guesses) for modality in get_args(Modality)),
    *(Task(f"vqa-photos{end}", "image", f"fetched:photos/{split}", questions.photographs, Preparation(),
           measures.ACCURACY, "answer", shard=24, batch=1, further=partial(guesses_and_tower, prepare=_SEEN_SMALL))
      for split, end in (("test", ""), ("validation", "-validation"))),
)  # fmt: skip

TASKS: dict[str, Task] = _PUBLISHED | _REAL | _SYNTHETIC | _ASKED

# Of a user's folder, by modality. Larger images would take minutes each on a CPU; the protocol says what was done.
LOCAL: dict[str, Task] = {
    "image": Task("local-images", "image", "", folders.images, Preparation("at most", 1024), measures.IMAGES,
                  shard=16, batch=1),
    "video": Task("local-videos", "video", "", folders.videos, Preparation("at most", 512, frames=48),
                  measures.PIXELS | measures.RFVD, shard=4, batch=1),
    "asset": Task("local-assets", "asset", "", folders.meshes, Preparation(), measures.VIEWS, shard=4, batch=1),
    "views": Task("local-views", "asset", "", folders.views, Preparation(views=None), measures.VIEWS, shard=4, batch=1),
}  # fmt: skip
