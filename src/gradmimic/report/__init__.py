"""The report: numbers and charts first (:class:`Frame`), then one self-contained page."""

from gradmimic.report.frame import Frame
from gradmimic.report.numbers import Interval, Metric
from gradmimic.report.page import render_report, write_report

__all__ = ["Frame", "Interval", "Metric", "render_report", "write_report"]
