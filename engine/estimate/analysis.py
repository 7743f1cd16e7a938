"""Work of the analysis of one backbone: neighbours and clusters by FAISS on a GPU, the rest by numpy on the host."""

from __future__ import annotations

from collections.abc import Iterator

from substyle.engine.analysis.geometry import RIDGE
from substyle.engine.analysis.neighbors import BLOCK, ITERATIONS, RECALL_AT, RESTARTS
from substyle.engine.config import AnalysisConfig
from substyle.engine.estimate.probes import ProbedTable, seconds
from substyle.engine.estimate.roofline import DISK, HOST, Busy, Device, Efficiency, Launch, Work

NEIGHBOURS, CLUSTERS, GEOMETRY = "k-NN and retrieval", "k-means", "geometry"
POINTS = 256  # rows per cluster of which FAISS trains k-means at most, its default
# Host seconds, measured on one Xeon core in 2026-11: per query (intervals of k-NN, of clusters), per number of a row
# that is scaled to unit length, per photograph and transformation (two bootstraps of 1,000 resamples), per number that
# is compared, and per operation of float32 products
_VOTE, _CLUSTER, _UNIT, _BOOTSTRAP, _COMPARE, _PRODUCT = 2e-5, 2.4e-4, 15e-9, 5.5e-6, 55e-9, 1 / 98e9


def parts(
    table: ProbedTable, config: AnalysisConfig, device: Device, reached: Efficiency, disk: float
) -> Iterator[tuple[str, Busy]]:
    """Seconds by resource of each part of the analysis of a backbone. `disk`: bytes per second."""
    variants, width = len(table.transformations), table.width
    tested, trained = (round(share * table.photographs) for share in (table.test, table.train))
    queries = min(max(config.max_queries // variants, 1), tested) * variants
    images = min(trained, config.max_bank)
    bank = images * min(max(config.max_bank // max(images, 1), 1), variants)
    rows = float(queries + bank)
    searches = [(bank, max(config.ks)), (queries, max(RECALL_AT) + 1)]
    work = Work([launch for count, k in searches for launch in search(queries, count, width, k)])
    read = {DISK: rows * width * table.itemsize / disk}
    yield NEIGHBOURS, seconds(work, device, reached) | read | {HOST: rows * width * _UNIT + queries * _VOTE}
    clusters = [table.tasks()["fine"][0], min(table.classes, tested)]
    steps = RESTARTS * ITERATIONS
    work = Work(
        [each for k in clusters for each in steps * search(min(queries, POINTS * k), k, width, 1)]
        + [each for k in clusters for each in search(queries, k, width, 1)]
    )
    yield CLUSTERS, seconds(work, device, reached) | {HOST: queries * _CLUSTER}
    fit, choose, score = (min(config.max_images, n) for n in (trained, table.photographs - trained - tested, tested))
    moved = variants - 1
    # targets in coordinates of the identity, the map at each strength, on validation photographs, and the best one
    products = 2.0 * width**2 * (fit + len(RIDGE) * choose + score)
    host = moved * (score * (_BOOTSTRAP + width * _COMPARE) + products * _PRODUCT)
    yield GEOMETRY, {HOST: host, DISK: 2 * moved * (fit + choose + score) * width * table.itemsize / disk}


def search(queries: int, bank: int, width: int, k: int) -> list[Launch]:
    """Exact search by FAISS in blocks of the bank: float32 products, whose results the selection reads."""
    found = []
    for start in range(0, bank, BLOCK):
        rows = min(BLOCK, bank - start)
        read, near = 4.0 * width * (queries + rows), 4.0 * queries * rows
        found += [Launch(2.0 * queries * rows * width, read + near), Launch(0.0, near + 12.0 * queries * k)]
    return found
