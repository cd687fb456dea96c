#!/usr/bin/env python3
"""What each of the short templates in `constructs.json` renders in Python's Jinja2, set up as transformers does.

    constructs.py > constructs_expected.json

One entry for each: the text, or null where Jinja2 fails. `constructs_differences.json`, which is kept by hand and explained in
docs/templates.md, has what is known to be otherwise here.
"""

import json
import sys
from pathlib import Path

from render import SPECIAL, environment

CONVERSATION = {
    "messages": [{"role": "user", "content": "axb"}, {"role": "assistant", "content": "ok"}],
    "add_generation_prompt": True,
    "tools": None,
    "documents": None,
}


def main():
    result = []
    for source in json.loads((Path(__file__).parent / "constructs.json").read_text(encoding="utf-8")):
        try:
            result.append(environment().from_string(source).render(**CONVERSATION, **SPECIAL))
        except Exception:
            result.append(None)
    sys.stdout.write("[\n" + ",\n".join(json.dumps(text, ensure_ascii=False) for text in result) + "\n]\n")


main()
