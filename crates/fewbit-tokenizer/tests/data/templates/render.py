#!/usr/bin/env python3
"""Renders chat templates with Python's Jinja2, set up as Hugging Face transformers sets it up.

    render.py TEMPLATE... < conversations.json > expected.json
    render.py --compare FILE TEMPLATE... < conversations.json
    render.py --hashes TEMPLATE... < conversations.json > hashes.json

Each conversation is an object of template variables. The result has, for every template, a list with
one entry per conversation: {"text": ...}, or {"error": ...} where the template raised an exception.
With --compare it is held against FILE, which `cargo run --release -p fewbit-tokenizer --example render
-- TEMPLATE... < conversations.json > FILE` wrote. With --hashes, SHA-256 stands for the template and for
each text, for templates that are not here.
"""

import datetime
import hashlib
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


def render(paths, conversations):
    result = {}
    for path in paths:
        rows = []
        for conversation in conversations:
            variables = {"tools": None, "documents": None, **SPECIAL, **conversation}
            try:
                template = environment().from_string(path.read_text(encoding="utf-8"))
                rows.append({"text": template.render(**variables)})
            except Exception as error:  # the kinds of failure are the template's business
                rows.append({"error": f"{type(error).__name__}: {error}"})
        result[path.name] = rows
    return result


def compare(result, other):
    n = n_texts = n_differences = 0
    for name, rows in result.items():
        for i, (expected, found) in enumerate(zip(rows, other[name], strict=True)):
            n += 1
            n_texts += "text" in expected
            if expected.get("text") != found.get("text"):
                n_differences += 1
                print(f"{name}, conversation {i}:\n  expected {expected}\n  found    {found}")
    print(f"{len(result)} templates, {n} renderings, {n_texts} of them texts: {n_differences} differences")
    return n_differences


def main():
    arguments = sys.argv[1:]
    mode = arguments.pop(0) if arguments[0].startswith("--") else None
    other = json.loads(Path(arguments.pop(0)).read_text(encoding="utf-8")) if mode == "--compare" else None
    conversations = json.load(sys.stdin)
    paths = [Path(argument) for argument in arguments]
    result = render(paths, conversations)
    if mode == "--compare":
        sys.exit(compare(result, other) > 0)
    if mode == "--hashes":
        sha256 = lambda text: hashlib.sha256(text.encode()).hexdigest()
        result = {
            sha256(path.read_text(encoding="utf-8")): {
                "name": path.name,
                "texts": [sha256(row["text"])[:16] if "text" in row else None for row in result[path.name]],
            }
            for path in paths
        }
        print("{" + ",".join(f"\n{json.dumps(key)}: {json.dumps(value)}" for key, value in result.items()) + "\n}")
        return
    json.dump(result, sys.stdout, ensure_ascii=False, indent=1)
    print()


if __name__ == "__main__":
    main()
