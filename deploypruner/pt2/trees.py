"""How inputs and outputs nest: tuples, lists and dicts; no type that torch would have to import or look up."""

from __future__ import annotations

import json
from typing import Any

from deploypruner.pt2.expressions import key
from deploypruner.pt2.refusal import Refusal, shown

_BARE = frozenset({"builtins.tuple", "builtins.list"})
_KEYED = frozenset({"builtins.dict", "collections.OrderedDict"})
_DEEPEST = 50
_TYPES = "export a module whose forward takes and returns tensors, tuples, lists and dicts"


def tree(text: str) -> str:
    """Accept a serialised tree of inputs or outputs, and write it anew.

    Raises:
        Refusal: Another protocol, a type that is not built in, or a key that is no plain text or number.
    """
    try:
        protocol, root = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise Refusal(f"{shown(text)} is not a tree of inputs or outputs") from None
    if protocol != 1:
        raise Refusal(f"the tree has format {shown(protocol)}, not 1")
    return json.dumps([1, _node(root, 0)])


def _node(node: Any, depth: int) -> dict[str, Any]:
    if not isinstance(node, dict) or not {"type", "context", "children_spec"} <= node.keys() or depth > _DEEPEST:
        raise Refusal("the tree is damaged")
    kind, children = node["type"], node["children_spec"]
    if not isinstance(children, list) or not isinstance(kind, str | None):
        raise Refusal("the tree is damaged")
    if kind is not None and kind not in _BARE | _KEYED:
        raise Refusal(f"inputs or outputs of type {shown(kind)} are not built in", _TYPES)
    inner = [_node(child, depth + 1) for child in children]
    context = json.dumps(_keys(node["context"], len(inner))) if kind in _KEYED else None if kind is None else "null"
    if kind is None and inner:
        raise Refusal("the tree is damaged")
    return {"type": kind, "context": context, "children_spec": inner}


def _keys(context: Any, count: int) -> list[str | int]:
    try:
        found = json.loads(context)
    except (ValueError, TypeError, RecursionError):
        raise Refusal("the tree is damaged") from None
    if not isinstance(found, list) or len(found) != count:
        raise Refusal("the tree is damaged")
    return [_key(name) for name in found]


def _key(name: Any) -> str | int:
    if type(name) is int and abs(name) < 2**63:
        return name
    if isinstance(name, str):
        return key(name)
    raise Refusal(f"{shown(name)} as a key of a dict is neither a text nor a number", _TYPES)
