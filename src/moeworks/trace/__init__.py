"""Traces: what the routers of a model decided over some texts, as plain Arrow files."""

from moeworks.trace.combine import concat
from moeworks.trace.export import export
from moeworks.trace.format import FileRecord, RecordedRows, RouterValues, TraceHeader
from moeworks.trace.reader import Part, Trace
from moeworks.trace.requests import RequestInfo, TokenSpan
from moeworks.trace.verify import Verified
from moeworks.trace.writer import TraceWriter

__all__ = [
    "FileRecord",
    "Part",
    "RecordedRows",
    "RequestInfo",
    "RouterValues",
    "TokenSpan",
    "Trace",
    "TraceHeader",
    "TraceWriter",
    "Verified",
    "concat",
    "export",
]
