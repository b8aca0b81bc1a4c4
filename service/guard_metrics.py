"""The quality guard's records as metrics, as last looked at; the /metrics route looks just before it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs.guard_record import GuardRecord, Verdict

_OF_PROFILE = ["model", "profile"]


class GuardCollector(Collector):
    """Shows every profile that was compared."""

    def __init__(self) -> None:
        self._seen: Sequence[GuardRecord] = ()

    def show(self, records: Sequence[GuardRecord]) -> None:
        """Remember what the next scrape shows."""
        self._seen = records

    def hide(self) -> None:
        """Redis is away: show no numbers rather than old ones."""
        self._seen = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the registry."""
        verdict = GaugeMetricFamily(
            "halftone_guard_verdict", "1 for the guard's verdict on a profile.", labels=[*_OF_PROFILE, "verdict"]
        )
        evidence = GaugeMetricFamily(
            "halftone_guard_evidence", "Evidence that it got worse than its build.", labels=[*_OF_PROFILE, "of"]
        )
        counted = GaugeMetricFamily("halftone_guard_comparisons", "Comparisons of its build.", labels=_OF_PROFILE)
        mean = GaugeMetricFamily("halftone_guard_psnr_db", "Estimate of the mean PSNR to float.", labels=_OF_PROFILE)
        low = GaugeMetricFamily("halftone_guard_psnr_db_low", "Its lower 95% confidence bound.", labels=_OF_PROFILE)
        for record in self._seen:
            for each in Verdict:
                verdict.add_metric([*record.key, each.value], float(record.verdict is each))
            for name, value in record.detectors._asdict().items():
                evidence.add_metric([*record.key, name], value)
            counted.add_metric(record.key, record.comparisons)
            mean.add_metric(record.key, record.psnr_db.mean)
            if record.psnr_db.bounds is not None:
                low.add_metric(record.key, record.psnr_db.bounds[0])
        yield from (verdict, evidence, counted, mean, low)
