from __future__ import annotations
def explain(message, arguments, parsers):
    return message
def explain_runtime_error(error):
    return None
