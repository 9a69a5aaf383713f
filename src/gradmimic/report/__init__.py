"""The report: numbers first (:class:`ReportData`), then one self-contained page."""

from gradmimic.report.numbers import LowSample, Metric, ReportData
from gradmimic.report.page import render_report, write_report

__all__ = ["LowSample", "Metric", "ReportData", "render_report", "write_report"]
