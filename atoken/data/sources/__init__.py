"""Sources of training samples by random access: folders, WebDataset shards, and Parquet or Arrow tables."""

from __future__ import annotations

from atoken.data.sources.folder import FolderSource
from atoken.data.sources.sample import SUFFIXES, Sample, Source, Templated
from atoken.data.sources.shards import ShardSource
from atoken.data.sources.table import TableSource

__all__ = ["SUFFIXES", "FolderSource", "Sample", "ShardSource", "Source", "TableSource", "Templated"]
