"""Writes sampling.json: which candidates are left, and how probable each is, after the stages of sampling.

Every stage is computed here from its paper's definition (or, where there is none, from what llama.cpp documents) in
NumPy float64 over all tokens, with a full sort: nothing is shared with the Rust code. The token that comes is always
the most probable candidate, so what depends on earlier tokens is fixed too.

    python3 tests/data/sampling.py > tests/data/sampling.json
"""

import json

import numpy as np

ORDER = ["top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature"]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def sort(ids, x):
    return sorted(range(len(ids)), key=lambda i: (-x[i], ids[i]))


def penalize(x, tokens, s):
    x = x.copy()
    p = s.get("penalties")
    if p:
        window = tokens[-p.get("last_n", 64):]
        for t in set(window):
            n = window.count(t)
            x[t] = x[t] * p.get("repeat", 1) if x[t] <= 0 else x[t] / p.get("repeat", 1)
            x[t] -= n * p.get("frequency", 0) + p.get("presence", 0)
    d = s.get("dry")
    if d:
        window = tokens[-d.get("last_n", 1 << 30):]
        best = {}
        for i in range(1, len(window)):  # the earlier sequence ends before position i
            n = 0
            while n < i and window[i - 1 - n] == window[-1 - n]:
                n += 1
            if n >= d["allowed_length"]:
                best[window[i]] = max(best.get(window[i], 0), n)
        for t, n in best.items():
            x[t] -= d["multiplier"] * d["base"] ** (n - d["allowed_length"])
    return x


def step(logits, tokens, s, state):
    x = logits.copy()
    for t, b in s.get("logit_bias", []):
        x[t] += b
    for t in s.get("banned", []):
        x[t] = -np.inf
    x = penalize(x, tokens, s)
    ids = np.array([i for i in range(len(x)) if x[i] > -np.inf])
    x = x[ids]
    order = ["temperature"] if "mirostat" in s else s.get("order", ORDER)
    for stage in order:
        keep = np.ones(len(ids), bool)
        p = softmax(x)
        if stage == "top_n_sigma" and s.get(stage):
            keep = x >= x.max() - s[stage] * x.std()
        elif stage == "top_k" and s.get(stage):
            keep[sort(ids, x)[s[stage]:]] = False
        elif stage == "typical_p" and s.get(stage, 1) < 1:
            distance = np.abs(-np.log(p) - (-(p * np.log(p)).sum()))
            by = sorted(range(len(ids)), key=lambda i: (distance[i], -x[i], ids[i]))
            n = int((np.cumsum(p[by]) < s[stage]).sum()) + 1
            keep[by[n:]] = False
        elif stage == "top_p" and s.get(stage, 1) < 1:
            by = sort(ids, x)
            n = int((np.cumsum(p[by]) < s[stage]).sum()) + 1
            keep[by[n:]] = False
        elif stage == "min_p" and s.get(stage):
            keep = p >= s[stage] * p.max()
        elif stage == "xtc" and s.get(stage):
            assert s[stage]["probability"] == 1
            tops = [i for i in sort(ids, x) if p[i] >= s[stage]["threshold"]]
            keep[tops[:-1]] = False
        elif stage == "temperature":
            t = s.get("temperature", 1)
            if s.get("dynamic_temperature") and len(ids) > 1:
                d = s["dynamic_temperature"]
                low, high = max(0, t - d["range"]), t + d["range"]
                entropy = -(p * np.log(p)).sum() / np.log(len(ids))
                t = low + (high - low) * entropy ** d["exponent"]
            x = x / t
        ids, x = ids[keep], x[keep]
    if "mirostat" in s:
        mu = state.setdefault("mu", 2 * s["mirostat"]["tau"])
        keep = -np.log2(softmax(x)) <= mu
        if not keep.any():
            keep[sort(ids, x)[0]] = True
        ids, x = ids[keep], x[keep]
        state["mu"] = mu - s["mirostat"]["eta"] * (-np.log2(softmax(x).max()) - s["mirostat"]["tau"])
    p, by = softmax(x), sort(ids, x)
    return [[int(ids[i]), float(p[i])] for i in by]


CASES = {
    "nothing": {},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 2.5": {"temperature": 2.5},
    "top-k": {"top_k": 7},
    "top-k of more than there are": {"top_k": 1000},
    "top-p 0.5": {"top_p": 0.5},
    "top-p 0.9": {"top_p": 0.9, "temperature": 1.7},
    "min-p": {"min_p": 0.05},
    "typical 0.2": {"typical_p": 0.2},
    "typical 0.7": {"typical_p": 0.7},
    "top-n-sigma 1": {"top_n_sigma": 1.0},
    "top-n-sigma 2.2": {"top_n_sigma": 2.2},
    "xtc 0.1": {"xtc": {"probability": 1.0, "threshold": 0.1}},
    "xtc 0.03": {"xtc": {"probability": 1.0, "threshold": 0.03}},
    "xtc without two tops": {"xtc": {"probability": 1.0, "threshold": 0.5}},
    "dynamic temperature": {"temperature": 1.0, "dynamic_temperature": {"range": 0.7, "exponent": 1.0}},
    "dynamic temperature, low": {"temperature": 0.5, "dynamic_temperature": {"range": 2.0, "exponent": 1.5}, "top_k": 5},
    "mirostat": {"mirostat": {"tau": 2.0, "eta": 0.3}},
    "mirostat, cold": {"temperature": 0.7, "mirostat": {"tau": 0.5, "eta": 1.0}},
    "bias and bans": {"logit_bias": [[3, 2.5], [5, -4.0]], "banned": [1, 2], "top_p": 0.95},
    "repeat": {"penalties": {"repeat": 1.5}, "top_k": 12},
    "presence, frequency": {"penalties": {"presence": 0.75, "frequency": 0.5, "last_n": 5}, "top_k": 12},
    "all penalties": {"penalties": {"repeat": 1.25, "presence": -0.5, "frequency": 0.25}},
    "dry": {"dry": {"multiplier": 1.0, "base": 1.75, "allowed_length": 2}},
    "dry, window": {"dry": {"multiplier": 0.75, "base": 2.0, "allowed_length": 1, "last_n": 6}},
    "everything": {
        "temperature": 1.25, "top_n_sigma": 3.0, "top_k": 25, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.02,
        "xtc": {"probability": 1.0, "threshold": 0.2}, "penalties": {"repeat": 1.125},
        "dry": {"multiplier": 0.5, "base": 1.5, "allowed_length": 2},
    },
    "temperature first": {"order": ["temperature", "top_p", "top_k"], "temperature": 2.0, "top_p": 0.6, "top_k": 9},
    "temperature first, min-p": {"order": ["temperature", "min_p"], "temperature": 0.5, "min_p": 0.02, "top_k": 3},
    "temperature first, the rest": {
        "order": ["temperature", "typical_p", "xtc", "top_n_sigma"], "temperature": 1.5, "typical_p": 0.8,
        "xtc": {"probability": 1.0, "threshold": 0.12}, "top_n_sigma": 1.5,
    },
}

rng = np.random.default_rng(5)
# Values that f32 holds exactly; the steps of one text have different logits.
LOGITS = [np.round(rng.normal(0, 2.5, 48) * 1024) / 1024 for _ in range(3)]
PROMPT = [3, 5, 7, 11, 5, 7, 9, 2, 3, 5, 7]

out = []
for name, settings in CASES.items():
    tokens, state, steps = list(PROMPT), {}, []
    for logits in LOGITS:
        left = step(logits, tokens, settings, state)
        tokens.append(left[0][0])
        steps.append(left)
    out.append({"name": name, "settings": settings, "steps": steps})
print(json.dumps({"prompt": PROMPT, "logits": [list(x) for x in LOGITS], "cases": out}))
