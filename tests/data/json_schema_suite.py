"""Writes json_schema_suite.json: the draft 2020-12 part of the JSON Schema Test Suite in one file.

The suite (MIT, Copyright (c) 2012 Julian Berman) comes with the source package of the Python package jsonschema:

    pip download --no-deps --no-binary :all: jsonschema==4.23.0 && tar xzf jsonschema-4.23.0.tar.gz
    python3 tests/data/json_schema_suite.py jsonschema-4.23.0/json/tests/draft2020-12 > tests/data/json_schema_suite.json

Instances and schemas are kept as text, so that numbers stay as they are written.
"""

import json
import pathlib
import sys


class Raw:
    """A number, as it is written."""

    def __init__(self, text):
        self.text = text


def dump(value):
    """JSON without spaces, numbers as written."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(json.dumps(k, ensure_ascii=False) + ":" + dump(v) for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


root = pathlib.Path(sys.argv[1])
groups = []
for path in sorted(root.rglob("*.json")):
    name = str(path.relative_to(root).with_suffix(""))
    for group in json.loads(path.read_text(), parse_float=Raw, parse_int=Raw):
        tests = [[dump(test["data"]), test["valid"]] for test in group["tests"]]
        groups.append([name, group["description"], dump(group["schema"]), tests])
print("[\n" + ",\n".join(json.dumps(group, ensure_ascii=True, separators=(",", ":")) for group in groups) + "\n]")
