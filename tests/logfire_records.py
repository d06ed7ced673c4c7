"""LogFire's `records` table, of spans that a real server told, in the engine that LogFire has (Apache DataFusion).

What LogFire adds to that engine, JSON operators and `time_bucket`, is put in other words before it is asked.
"""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from datafusion import SessionContext, udf
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

Row = dict[str, Any]


def records_of(scopes: Iterable[ScopeSpans]) -> list[Row]:
    return [_record(scope.scope.name, span) for scope in scopes for span in scope.spans]


def ask(records: list[Row], query: str) -> list[Row]:
    """The rows that a query has for an answer, with `$resolution` at a minute."""
    engine = SessionContext()
    text_type = pa.string()
    engine.register_udf(udf(_json_as_text, [text_type, text_type], text_type, "immutable", "json_as_text"))
    columns = {name: [record[name] for record in records] for name in records[0]}
    columns["attributes"] = [json.dumps(attributes) for attributes in columns["attributes"]]
    engine.from_pydict(columns, name="records")
    rows: list[Row] = engine.sql(_in_plain_sql(query)).to_pylist()
    return rows


def _record(scope_name: str, span: Span) -> Row:
    attributes = {pair.key: _value(pair.value) for pair in span.attributes}
    return {
        "otel_scope_name": scope_name,
        "span_name": span.name,
        "start_timestamp": datetime.fromtimestamp(span.start_time_unix_nano / 1e9, UTC),
        "end_timestamp": datetime.fromtimestamp(span.end_time_unix_nano / 1e9, UTC),
        "duration": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex() or None,
        "attributes": {name: value for name, value in attributes.items() if not name.startswith("logfire.")},
    }


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind is not None else None


def _json_as_text(documents: pa.Array, names: pa.Array) -> pa.Array:
    """Postgres' `->>`: a string as it is, all else as JSON, null for what is not there."""
    found = [
        json.loads(document).get(name) for document, name in zip(documents.to_pylist(), names.to_pylist(), strict=True)
    ]
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in found]
    return pa.array(texts, pa.string())


def _in_plain_sql(query: str) -> str:
    query = query.replace("$resolution", "'1 minute'")
    query = re.sub(r"time_bucket\(('[^']*'),", r"date_bin(\1::interval,", query)
    return re.sub(r"([\w.]*\battributes)->>('[^']*')", r"json_as_text(\1, \2)", query)
