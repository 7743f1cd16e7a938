"""Progress of a run as metrics of Prometheus."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from substyle.engine import observability
from substyle.errors import optional
from substyle.files import write

_LABELS = ("stage", "unit")


@contextmanager
def exported(path: Path | None) -> Iterator[None]:
    """Write the progress of all stages in the block to a file for the textfile collector of node_exporter.

    It is written when the block begins and ends, every ten seconds and at the end of each stage.

    Raises:
        MissingError: prometheus_client is not installed.
        OSError: the file cannot be written when the block begins; later, this is a warning.
    """
    if path is None:
        yield
        return
    client = optional("prometheus_client", "metrics")
    registry = client.CollectorRegistry()
    gauges = {
        name: client.Gauge(f"substyle_{name}", text, labels, registry=registry)
        for name, text, labels in (
            ("start_time_seconds", "Unix time at which the run began", ()),
            ("running", "1 until the run ends, by an error too; a killed run leaves 1", ()),
            ("done", "items that are finished, also by earlier runs", _LABELS),
            ("total", "items of the stage", _LABELS),
            ("per_second", "items per second", _LABELS),
            ("left_seconds", "seconds left of the stage", ("stage",)),
            ("quarantined", "photographs that this run could not decode", ("stage",)),
        )
    }

    def save() -> None:
        write(path, client.generate_latest(registry), mode=0o644)  # the collector has a user of its own

    def update() -> None:
        try:
            save()
        except OSError as error:
            print(f"warning: --metrics {path}: {error.strerror}; the run goes on", file=sys.stderr)

    def report(bar: observability.ProgressBar) -> None:
        rate = bar.rate
        for unit, share in bar.units.items():
            for name, number in {"done": bar.n, "total": bar.total, "per_second": rate}.items():
                gauges[name].labels(bar.name, unit).set(number * share)
        if rate:
            gauges["left_seconds"].labels(bar.name).set(max(bar.total - bar.n, 0) / rate)
        gauges["quarantined"].labels(bar.name).set(len(bar.quarantined))
        update()

    gauges["start_time_seconds"].set_to_current_time()
    gauges["running"].set(1)
    save()
    try:
        with observability.listening(report):
            yield
    finally:
        gauges["running"].set(0)
        update()
