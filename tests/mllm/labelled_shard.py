"""A shard of tiny photographs with labels, as ``atoken fetch photos`` packs them."""

import io
import json
import tarfile

from PIL import Image


def write_shard(path, records):
    """An image and a record for each of ``records``; the red of image n is n."""
    with tarfile.open(path, "w") as shard:
        for number, record in enumerate(records):
            image = io.BytesIO()
            Image.new("RGB", (32, 32), (number, 0, 0)).save(image, "PNG")
            for suffix, data in ((".png", image.getvalue()), (".json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"{number}{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
