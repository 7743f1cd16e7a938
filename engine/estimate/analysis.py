"""Work of the analysis of one backbone: neighbours and clusters by FAISS on a GPU, the rest by numpy on the host."""

from __future__ import annotations

from substyle.engine.analysis.geometry import RIDGE
from substyle.engine.analysis.neighbors import ITERATIONS, RESTARTS
from substyle.engine.config import AnalysisConfig
from substyle.engine.estimate.probes import ProbedTable
from substyle.engine.estimate.roofline import CORES, GPU, HOST, STORAGE, Device, Parts

NEIGHBOURS, GEOMETRY = "neighbours and clusters", "geometry"
POINTS = 256  # rows per cluster of which FAISS trains k-means at most, its default
# Host seconds, measured on one Xeon core in 2026-11: per query (intervals of k-NN, of clusters), per number of a row
# that is scaled to unit length, per photograph and transformation (two bootstraps of 1,000 resamples), per number that
# is compared, and per operation of float32 products
_VOTE, _CLUSTER, _UNIT, _BOOTSTRAP, _COMPARE, _PRODUCT = 2e-5, 2.4e-4, 15e-9, 5.5e-6, 55e-9, 1 / 98e9


def parts(table: ProbedTable, config: AnalysisConfig, device: Device, *, rate: float) -> Parts:
    """Seconds by resource of each part of the analysis of a backbone, from storage of so many bytes per second."""
    variants, width = len(table.transformations), table.width
    tested, trained = (round(share * table.photographs) for share in (table.test, table.train))
    queries = min(max(config.max_queries // variants, 1), tested) * variants
    images = min(trained, config.max_bank)
    bank = images * min(max(config.max_bank // max(images, 1), 1), variants)
    searched = queries * (bank + queries)  # products: k-NN, retrieval, then k-means and its last assignment
    for k in (table.tasks()["transformation"][0], min(table.classes, tested)):
        searched += k * (RESTARTS * ITERATIONS * min(queries, POINTS * k) + queries)
    # exact search in float32, whose results the selection reads
    gpu = device.seconds(2.0 * width * searched, 8.0 * searched, product=False)
    host = (queries + bank) * width * _UNIT + queries * (_VOTE + _CLUSTER)
    neighbours = {GPU: gpu, HOST: host, STORAGE: (queries + bank) * width * table.itemsize / rate}
    fit, choose, score = (min(config.max_images, n) for n in (trained, table.photographs - trained - tested, tested))
    moved = variants - 1
    # targets in coordinates of the identity, the map at each strength, on validation photographs, and the best one
    products = 2.0 * width**2 * (fit + len(RIDGE) * choose + score)
    host = moved * (score * (_BOOTSTRAP + width * _COMPARE) + products * _PRODUCT / CORES)
    geometry = {HOST: host, STORAGE: 2 * moved * (fit + choose + score) * width * table.itemsize / rate}
    return {NEIGHBOURS: neighbours, GEOMETRY: geometry}
