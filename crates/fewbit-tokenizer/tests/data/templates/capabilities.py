#!/usr/bin/env python3
"""What chat templates can render, found with Python's Jinja2 by the rules of `src/template/capabilities.rs`.

    capabilities.py TEMPLATE... > capabilities.json
    capabilities.py --compare FILE TEMPLATE...
    capabilities.py --own > own_capabilities.json

FILE is what `cargo run --release -p fewbit-tokenizer --example capabilities -- TEMPLATE...` wrote. With --own the
templates are those of `own_templates.json`, which are short and of this project's own words.
"""

import json
import sys
from pathlib import Path

import jinja2.meta

from render import SPECIAL, environment

SYSTEM, QUESTION, ANSWER, THOUGHT = "qsystemq", "qquestionq", "qanswerq", "qthoughtq"
TOOLS, KEYS, VALUES = ["qtoolq", "qotherq"], ["qkeyq", "qargq"], ["qvalueq", "qwordq"]
RESULTS, IDS = ["qresultq", "qoutcomeq"], ["qcallid01", "qcallid02"]
NOISE = ["None", "null", "Undefined"]
USUAL = set(
    "add_generation_prompt bos_token caller documents eos_token loop messages pad_token raise_exception self "
    "strftime_now tools unk_token super".split()
)


def tools(n):
    return [
        {
            "type": "function",
            "function": {
                "name": TOOLS[i],
                "description": "d",
                "parameters": {
                    "type": "object",
                    "properties": {KEYS[i]: {"type": "string", "description": "d"}},
                    "required": [KEYS[i]],
                },
            },
        }
        for i in range(max(n, 1))
    ]


def render(template, messages, tools=None):
    for prompt in (True, False):
        try:
            return template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, **SPECIAL
            )
        except Exception:
            pass
    return None


def say(role, content):
    return {"role": role, "content": content}


def calls(template, n, arguments, content, results, system, reasoning=None):
    """The text with the calls, if every word comes out as it went in."""
    head = [say("system", SYSTEM)] if system else []
    head.append(say("user", QUESTION))
    answer = {"role": "assistant"}
    if content != "Omitted":
        answer["content"] = "" if content == "Empty" else None
    answer["tool_calls"] = []
    for i in range(n):
        value = {KEYS[i]: VALUES[i]}
        value = json.dumps(value) if arguments == "Text" else value
        function = {"name": TOOLS[i], "arguments": value}
        answer["tool_calls"].append({"type": "function", "id": IDS[i], "function": function})
    if reasoning:
        answer[reasoning] = THOUGHT
    messages = head + [answer]
    if results:
        for i in range(n):
            messages.append({**say("tool", RESULTS[i]), "name": TOOLS[i], "tool_call_id": IDS[i]})
    text = render(template, messages, tools(n))
    if text is None:
        return None
    plain = head + [say("assistant", ANSWER)]
    without = render(template, plain, tools(n))
    if without is None:
        without = render(template, plain + [say("user", QUESTION)], tools(n)) or ""
    more = lambda word: text.count(word) > without.count(word)
    whole = all((more(TOOLS[i]) or more(IDS[i])) and more(KEYS[i]) and more(VALUES[i]) for i in range(n))
    mangled = any(more(f"'{KEYS[i]}':") or more(f'\\"{KEYS[i]}') for i in range(n))
    noisy = content != "Empty" and any(map(more, NOISE))
    return text if whole and not mangled and not noisy else None


def capabilities(source):
    env = environment()
    template = env.from_string(source)
    question = [say("user", QUESTION)]
    system = [say("system", SYSTEM)] + question
    shows = lambda messages, tools, word: word in (render(template, messages, tools) or "")
    found = {
        # Of a template that refuses a plain question nothing is known.
        "system": shows(system, None, SYSTEM)
        or shows(system, tools(1), SYSTEM)
        or not shows(question, None, QUESTION),
        "tools": shows(question, tools(1), TOOLS[0]) or shows(system, tools(1), TOOLS[0]),
        "tool_calls": False,
        "arguments": "Object",
        "call_content": "Empty",
        "parallel_calls": False,
        "tool_results": False,
        "reasoning": None,
    }
    forms = [
        (arguments, content, results, system)
        for results, system in [(True, False), (False, False), (True, True), (False, True)]
        for arguments in ("Object", "Text")
        for content in ("Empty", "Null", "Omitted")
    ]
    good = next((form for form in forms if calls(template, 1, *form)), None)
    if good:
        arguments, content, results, system = good
        found["tool_calls"], found["arguments"], found["call_content"] = True, arguments, content
        found["parallel_calls"] = calls(template, 2, *good) is not None
        found["tool_results"] = RESULTS[0] in (calls(template, 1, arguments, content, True, system) or "")
        for field in ("reasoning_content", "reasoning", "thinking"):
            if THOUGHT in (calls(template, 1, *good, reasoning=field) or ""):
                found["reasoning"] = field
                break
    tree = env.parse(source)
    names = jinja2.meta.find_undeclared_variables(tree) - USUAL - set(env.globals)
    stored = {name.name for name in tree.find_all(jinja2.nodes.Name) if name.ctx in ("store", "param")}
    # Read before it is set, as in `{% set x = x | default(1) %}` or `{% if x is not defined %}`.
    asked = {
        test.node.name
        for test in tree.find_all((jinja2.nodes.Test, jinja2.nodes.Filter))
        if test.name in ("defined", "undefined", "default", "d") and isinstance(test.node, jinja2.nodes.Name)
    }
    for assign in tree.find_all(jinja2.nodes.Assign):
        if isinstance(assign.target, jinja2.nodes.Name):
            asked |= {n.name for n in assign.node.find_all(jinja2.nodes.Name) if n.name == assign.target.name}
    found["variables"] = sorted(names - stored)
    found["perhaps"] = sorted(names & stored & asked)
    return found


def main():
    args = sys.argv[1:]
    here = Path(__file__).parent
    if args[:1] == ["--own"]:
        own = json.loads((here / "own_templates.json").read_text(encoding="utf-8"))
        result = {name: capabilities(source) for name, source in own.items()}
    elif args[:1] == ["--compare"]:
        theirs = json.loads(Path(args[1]).read_text(encoding="utf-8"))
        bad = 0
        for path in map(Path, args[2:]):
            want, got = capabilities(path.read_text(encoding="utf-8")), theirs[path.name]
            # A name that is also set is a variable where the way through the template reads it first: Python only
            # says what could be, and none that only is read may be missing.
            want.pop("perhaps")
            want["variables"] = sorted(set(want["variables"]) | set(got.get("variables", [])))
            if want != got:
                bad += 1
                print(path.name, {k: (want[k], got.get(k)) for k in want if want[k] != got.get(k)}, got.get("error", ""))
        print(f"{len(args) - 2} templates, {bad} of them otherwise")
        sys.exit(bad > 0)
    else:
        result = {Path(path).name: capabilities(Path(path).read_text(encoding="utf-8")) for path in args}
    json.dump(result, sys.stdout, indent=1, ensure_ascii=False)
    print()


main()
