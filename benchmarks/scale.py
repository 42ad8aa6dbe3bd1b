"""What token stores of 10^6 (ImageNet), 10^8 and 10^9 images cost with so400m-c: a model, not a measurement.

``python -m benchmarks.scale`` prints three tables. FLOPs are counted by ``atoken.pretrain.cost``; bytes follow from the
formats (docs/token-file.md, docs/token-store.md). What a CPU core and the driver do is measured by
``python -m benchmarks.rates``, the rest is assumed; each is an option:

* side: pixels, of square images; source_kb: of their files, 110 in ImageNet's mean;
* mfu: percent of the dense bf16 peak of an H100 that encoding reaches; cores: of the CPU, for each GPU;
* decode: images a second that a core reads, scales and crops; write_mb, join_mb: MB a second of a store that a core
  makes of latents, and joins to shards; units: reports of finished units a second that the driver takes;
* network_mb: MB a second between the storage and what belongs to one GPU; storage_mb: MB a second of the storage;
* row_bytes: an item takes in the index, without its vector; adds: vectors a second that become an approximate index,
  on the one thread that makes it.
"""

from __future__ import annotations

from argparse import Namespace
from math import ceil
from typing import NamedTuple

from atoken.patches import grid
from atoken.presets import preset
from atoken.pretrain.cost import flops, grids
from atoken.store.layout import Options
from atoken.train.devices import PEAKS
from benchmarks.tables import head, options, row

CONTINUOUS, DISCRETE, GPU = "so400m-c", "so400m-d", "H100"
ITEMS = {"10^6 (ImageNet, 1,281,167)": 1_281_167, "10^8": 10**8, "10^9": 10**9}
GPUS = 1, 8, 64, 512
GRAPH = 276  # bytes that HNSW keeps of a vector beside its numbers: twice 32 neighbours, key, level
DEFAULTS = {
    "side": 256, "source_kb": 110, "mfu": 40, "cores": 12, "decode": 240, "write_mb": 290, "join_mb": 430,
    "units": 200, "network_mb": 1_000, "storage_mb": 20_000, "row_bytes": 150, "adds": 700,
}  # fmt: skip


class Item(NamedTuple):
    """What one image is: FLOPs of its encoding, and bytes in the store by how its tokens are written."""

    tokens: int
    flops: int
    vector: int
    stored: dict[str, int]

    @staticmethod
    def of(side: int) -> Item:
        """A square image of so many pixels a side."""
        config, codes = preset(CONTINUOUS), preset(DISCRETE)
        tokens = grids([grid(1, side, side)], config.frame_values)
        count, vector = len(tokens.feats), 4 * config.encoder_width
        assert codes.fsq_levels is not None  # a discrete model has them
        bits = (
            codes.latent_channels // len(codes.fsq_levels) * sum((level - 1).bit_length() for level in codes.fsq_levels)
        )
        a_token = {
            "float32": 4 * config.latent_channels,
            "float16": 2 * config.latent_channels,
            "codes": ceil(bits / 8),
        }
        forward = flops(config, ("",), frozenset(["posterior", "pooled"]), tokens).forward
        return Item(count, forward, vector, {name: count * size + vector for name, size in a_token.items()})


def sizes(item: Item, row_bytes: int, adds: int) -> None:
    """Print what a store takes, by the number of its items."""
    a_gpu_hour = 3600 * PEAKS[GPU]
    head("", *ITEMS)
    counts = ITEMS.values()
    row("tokens", *(f"{count * item.tokens:.2e}" for count in counts))
    row("PFLOP to encode", *(f"{count * item.flops / 1e15:,.0f}" for count in counts))
    for share in (0.2, 0.4, 0.6):
        row(
            f"{GPU}-hours at an MFU of {share:.0%}",
            *(f"{count * item.flops / a_gpu_hour / share:,.1f}" for count in counts),
        )
    for name, size in item.stored.items():
        row(f"TB as {name}", *(f"{count * size / 1e12:,.3g}" for count in counts))
    defaults = Options()
    a_unit = min(256, max(1, defaults.batch_tokens // item.tokens))
    a_shard = a_unit * max(1, round(defaults.shard_mb * 1e6 / (a_unit * item.stored["float32"])))
    row(f"units of {a_unit} items", *(f"{ceil(count / a_unit):,}" for count in counts))
    row(f"shards of {a_shard:,} items as float32", *(f"{ceil(count / a_shard):,}" for count in counts))
    in_memory = {
        "the index without vectors": row_bytes,
        "exact search": item.vector,
        "HNSW in float16": item.vector // 2 + GRAPH,
    }
    for name, size in in_memory.items():
        row(f"GB of {name}", *(f"{count * size / 1e9:,.0f}" for count in counts))
    row("hours to make that of HNSW", *(f"{count / adds / 3600:,.1f}" for count in counts))


def stages(item: Item, chosen: Namespace, gpus: int) -> dict[str, float]:
    """Items a second that each stage would take alone."""
    stored, cores, unit = item.stored["float32"], gpus * chosen.cores, min(256, Options().batch_tokens // item.tokens)
    source = chosen.source_kb * 1e3
    moved = source + 3 * stored  # read; a part is written, read again, and written into a shard
    return {
        "encode": gpus * PEAKS[GPU] * chosen.mfu / 100 / item.flops,
        "CPU": cores / (1 / chosen.decode + stored / 1e6 * (1 / chosen.write_mb + 1 / chosen.join_mb)),
        "network": gpus * chosen.network_mb * 1e6 / moved,
        "storage": chosen.storage_mb * 1e6 / moved,
        "driver": chosen.units * unit,
    }


def pace(item: Item, chosen: Namespace) -> None:
    """Print how many items a second each stage would take alone, which is the slowest, and what follows."""
    names = list(stages(item, chosen, 1))
    head(
        f"{GPU}s",
        *(f"{name}, items/s" for name in names),
        "slowest",
        *(f"{count:.0e} items" for count in ITEMS.values()),
    )
    for gpus in GPUS:
        rates = stages(item, chosen, gpus)
        slowest = min(rates, key=lambda name: rates[name])
        times = (f"{count / rates[slowest] / 3600:,.3g} h" for count in ITEMS.values())
        row(gpus, *(f"{rate:,.0f}" for rate in rates.values()), slowest, *times)


def main() -> None:
    """Print the tables."""
    chosen = options(__doc__, **DEFAULTS)
    item = Item.of(chosen.side)
    head("one image", "tokens", "GFLOP to encode", "file, kB", *(f"{name}, kB" for name in item.stored))
    kilobytes = (f"{size / 1e3:,.1f}" for size in item.stored.values())
    row(f"{chosen.side}x{chosen.side}", item.tokens, f"{item.flops / 1e9:,.0f}", chosen.source_kb, *kilobytes)
    print()
    sizes(item, chosen.row_bytes, chosen.adds)
    print()
    pace(item, chosen)
    needed = stages(item, chosen, 1)["encode"] / chosen.decode
    print(f"\nOne {GPU} encodes what {needed:,.0f} cores decode.")


if __name__ == "__main__":
    main()
