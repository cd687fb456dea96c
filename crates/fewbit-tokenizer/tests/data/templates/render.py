#!/usr/bin/env python3
"""Renders chat templates with Python's Jinja2, set up as Hugging Face transformers sets it up.

    render.py TEMPLATE... < conversations.json > expected.json

Each conversation is an object of template variables. The result has, for every template, a list with
one entry per conversation: {"text": ...}, or {"error": ...} where the template raised an exception.
"""

import datetime
import json
import sys
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

# 2025-03-04 05:06:07 UTC, which tests pass as the fixed clock.
NOW = datetime.datetime.fromtimestamp(1741064767, datetime.timezone.utc)

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class Generation(jinja2.ext.Extension):
    """{% generation %} blocks, which mark the assistant's words and render as they are."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def main():
    conversations = json.load(sys.stdin)
    result = {}
    for path in map(Path, sys.argv[1:]):
        rows = []
        for conversation in conversations:
            variables = {"tools": None, "documents": None, **SPECIAL, **conversation}
            try:
                template = environment().from_string(path.read_text(encoding="utf-8"))
                rows.append({"text": template.render(**variables)})
            except Exception as error:  # the kinds of failure are the template's business
                rows.append({"error": f"{type(error).__name__}: {error}"})
        result[path.name] = rows
    json.dump(result, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
