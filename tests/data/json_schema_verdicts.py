"""Validates the random texts of the schema test with the Python package jsonschema, and lists those that are not valid.

    FEWBIT_SCHEMA_TEXTS=texts.json cargo test --release -p fewbit --features constraints --lib schema::tests
    python3 tests/data/json_schema_verdicts.py texts.json

Schemas that refer to other documents are left out, for nothing is fetched, and patterns that Python reads
otherwise; formats are the business of the Rust test.
"""

import json
import re
import sys

import jsonschema
import referencing.exceptions

n_valid = n_left_out = 0
invalid = []
for schema_text, text in json.load(open(sys.argv[1])):
    # Classes of ECMA-262, which Python reads otherwise or not at all.
    if re.search(r"\\\\[wWdDsScpP]", schema_text):
        n_left_out += 1
        continue
    try:
        validator = jsonschema.Draft202012Validator(json.loads(schema_text))
        errors = [error.message for error in validator.iter_errors(json.loads(text))]
    except (referencing.exceptions.Unresolvable, re.error):
        n_left_out += 1
        continue
    if errors:
        invalid.append(f"{schema_text}\n    {text}\n    {errors[0]}")
    else:
        n_valid += 1
print(*invalid, f"{n_valid} valid, {len(invalid)} not valid, {n_left_out} left out", sep="\n")
sys.exit(bool(invalid) or n_valid < 1000)
