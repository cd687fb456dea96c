"""Hooks of schemathesis: requests name the model that there is, and ask for short answers.

The rest of a request stays as it was made, wrong types included.
"""

import os

import schemathesis

MODEL = os.environ["FEWBIT_MODEL"]
MAX_TOKENS = 3
LIMITS = {
    "/chat/completions": "max_completion_tokens",
    "/completions": "max_tokens",
    "/messages": "max_tokens",
    "/responses": "max_output_tokens",
}


def is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = MODEL
    field = LIMITS.get(case.operation.path.removeprefix("/v1"))
    if field and (body.get(field) is None and field != "max_tokens" or is_number(body.get(field))):
        if (body.get(field) or 0) >= 0:
            body[field] = MAX_TOKENS
    if is_number(body.get("n")) and body["n"] > 2:
        body["n"] = 2
