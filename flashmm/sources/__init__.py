"""Every kind of Y, read as blocks: float64, never whole when sparse or on disk.

A source knows its labels and hands out blocks; `flashmm.stats.block_sums` sums over them. One
module per kind: `memory`, `dataarrays`, `disk`, `dask_arrays`, `anndata_kinds`, `iterables`.
"""

from flashmm.sources.make import make_source
from flashmm.sources.readers import BLOCK_BYTES
from flashmm.sources.source import Block, Source
from flashmm.sources.transforms import Transform

__all__ = ["BLOCK_BYTES", "Block", "Source", "Transform", "make_source"]
