"""Every task is a row of data: where it lies below the data's root, how items are prepared, what is measured.

To add one, add a row to ``TASKS``. What the paper does not say is said here, and is in the protocol of every number:
frames (all up to 300; for retrieval 12 of those at one a second, evenly, as CLIP4Clip takes them), cameras (16, black
background), templates (80 of OpenAI), which of the captions of COCO (those of the test split of Karpathy and Fei-Fei).

    ROOT/imagenet/val/SYNSET/*.JPEG     ROOT/imagenet-v2/0..999/*.jpeg
    ROOT/coco/val2017/*.jpg, annotations/, dataset_coco.json, val2014/*.jpg
    ROOT/flickr30k/dataset_flickr30k.json, images/*.jpg
    ROOT/davis/JPEGImages/1080p/CLIP/*.jpg   ROOT/tokenbench/**/*.mp4   ROOT/toys4k/CLASS/**/*.obj
    ROOT/msr-vtt/MSRVTT_JSFUSION_test.csv, videos/*.mp4
    ROOT/msvd/test_list.txt, raw-captions.pkl (or captions.txt), videos/*.avi
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal

from eval import measures
from eval.measures import Build
from eval.metrics.naming import CLASS_NAME_ONLY, OPENAI, Templates
from eval.models.tokenizer import Pool
from eval.prepare import Preparation
from eval.sources import captions, folders, synthetic
from eval.sources.entry import Listing

Modality = Literal["image", "video", "asset"]


@dataclass(frozen=True)
class Task:
    """A row. folder: below the root; open: lists its entries. full: how many members the whole data set has.

    make: what is asked of a model. metrics: what builds each, by its name. pool: of what the vector of a video is.
    shard, batch: as in ``Job``. table3: it is in the paper's table 3.
    """

    name: str
    modality: Modality
    folder: str
    open: Callable[[Path], Listing]
    prepare: Preparation
    metrics: Mapping[str, Build]
    make: Literal["reconstruct", "embed"] = "reconstruct"
    full: int | None = None
    templates: Templates | None = None
    shard: int = 32
    batch: int = 4
    pool: Pool = "whole"
    table3: bool = False


def _by_name(*tasks: Task) -> dict[str, Task]:
    return {task.name: task for task in tasks}


def _at_three_sizes(name: str, row: Callable[[str, Preparation], Task]) -> list[Task]:
    """A task for each size at which images are understood: so many tokens, by the side of a square of as many."""
    sides = {256: 256, 384: 576, 512: 1024}
    return [row(f"{name}-{side}", Preparation("naflex", tokens, "bilinear")) for side, tokens in sides.items()]


_SQUARE = Preparation("adm", 256)
_RETRIEVED = Preparation("centre", 224, frames=12, fps=Fraction(1), spread=True)
_SEEN_MADE = Preparation(views=16, view_size=256)
_OF_VIDEO = measures.PIXELS | measures.SEAMS_IN_TIME | measures.RFVD
_ZERO_SHOT, _RETRIEVAL = measures.ZERO_SHOT, measures.RETRIEVAL


def _imagenet(root: Path) -> Listing:
    return folders.class_folders(root / "val", folders.IMAGENET)


def _imagenet_v2(root: Path) -> Listing:
    return folders.class_folders(root, folders.IMAGENET)


_PUBLISHED = _by_name(
    Task("imagenet-256", "image", "imagenet/val", folders.images, _SQUARE, measures.IMAGES | measures.RFID,
         full=50_000, shard=1000, batch=16, table3=True),
    *_at_three_sizes("imagenet-zero-shot", lambda name, prepare: Task(
        name, "image", "imagenet", _imagenet, prepare, _ZERO_SHOT, "embed", 50_000, OPENAI, 1000, 16,
        table3=name.endswith("256"))),
    *_at_three_sizes("imagenet-v2-zero-shot", lambda name, prepare: Task(
        name, "image", "imagenet-v2", _imagenet_v2, prepare, _ZERO_SHOT, "embed", 10_000, OPENAI, 1000, 16)),
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
         pool="frames", table3=True),
    Task("msvd-retrieval", "video", "msvd", captions.msvd, _RETRIEVED, _RETRIEVAL, "embed", 670, shard=50,
         pool="frames"),
    Task("toys4k", "asset", "toys4k", folders.meshes, Preparation(), measures.VIEWS,
         full=3_229, shard=32, batch=1, table3=True),
    Task("toys4k-zero-shot", "asset", "toys4k", folders.meshes_by_class, Preparation(), _ZERO_SHOT, "embed", 3_229,
         OPENAI, 32, 1, table3=True),
)  # fmt: skip

_MADE = _by_name(
    Task("procedural-images", "image", "", synthetic.made_images, Preparation(), measures.IMAGES | measures.NANO),
    Task("procedural-videos", "video", "", synthetic.made_videos, Preparation(), measures.PIXELS | measures.NANO_VIDEOS,
         shard=8, batch=2),
    Task("procedural-assets", "asset", "", synthetic.made_assets, _SEEN_MADE, measures.VIEWS, shard=4, batch=1),
    Task("procedural-images-zero-shot", "image", "", synthetic.named_images, Preparation(), _ZERO_SHOT, "embed",
         templates=CLASS_NAME_ONLY, batch=16),
    Task("procedural-videos-zero-shot", "video", "", synthetic.named_videos, Preparation(), _ZERO_SHOT, "embed",
         templates=CLASS_NAME_ONLY),
    Task("procedural-assets-zero-shot", "asset", "", synthetic.named_assets, _SEEN_MADE, _ZERO_SHOT, "embed",
         templates=CLASS_NAME_ONLY, shard=16, batch=1),
    Task("procedural-retrieval", "image", "", synthetic.captioned_images, Preparation(), _RETRIEVAL, "embed", batch=16),
    Task("procedural-scenes-retrieval", "image", "", synthetic.scenes, Preparation(), _RETRIEVAL, "embed", batch=16),
    Task("photographs", "image", "", synthetic.photographs, Preparation(), measures.IMAGES, shard=1, batch=1),
)  # fmt: skip

TASKS: dict[str, Task] = _PUBLISHED | _MADE

# Of a user's folder, by modality. Larger images would take minutes each on a CPU; the protocol says what was done.
LOCAL: dict[str, Task] = {
    "image": Task("local-images", "image", "", folders.images, Preparation("at most", 1024), measures.IMAGES,
                    shard=16, batch=1),
    "video": Task("local-videos", "video", "", folders.videos, Preparation("at most", 512, frames=48), measures.PIXELS,
                 shard=4, batch=1),
    "asset": Task("local-assets", "asset", "", folders.meshes, Preparation(),
                  measures.VIEWS, shard=4, batch=1),
    "views": Task("local-views", "asset", "", folders.views, Preparation(views=None),
                  measures.VIEWS, shard=4, batch=1),
}  # fmt: skip
