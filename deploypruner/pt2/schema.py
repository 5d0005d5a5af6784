"""JSON of an archive -> torch's own records, where every value has its type and every text passes a rule."""

from __future__ import annotations

import dataclasses
import keyword
import math
import re
import types
import typing
from collections.abc import Callable, Hashable
from enum import IntEnum
from functools import cache
from typing import Annotated, Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from deploypruner.pt2.expressions import guard, key, size_expression
from deploypruner.pt2.operators import operator
from deploypruner.pt2.refusal import Refusal, shown
from deploypruner.pt2.trees import tree

_GREATEST = 2**63
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_NAME = re.compile(r"[A-Za-z_]\w{0,500}", re.ASCII)
_PART = re.compile(r"(?!__)[\w :/@+<>()-]{1,256}")
_FILE = re.compile(r"(weight|tensor)_\d{1,9}", re.ASCII)
_WORD = re.compile(r"[\w.+:<=-]{0,100}", re.ASCII)
# Needed for messages; everything else of a node's history is left out.
_METADATA = ("stack_trace", "nn_module_stack")
_TENSORS_ONLY = "export a module that holds and takes nothing but tensors and numbers"

Rule = Callable[[str], str]


def checked(cls: Any, data: Any) -> Any:
    """Build the record `cls` of torch._export.serde.schema from parsed JSON.

    Unknown keys are left out, as torch does.

    Raises:
        Refusal: A value of another type, or a text that its rule does not accept.
    """
    if isinstance(cls, typing.ForwardRef | str):
        return checked(getattr(schema, cls if isinstance(cls, str) else cls.__forward_arg__), data)
    if typing.get_origin(cls) is list:
        return [_at(f"[{i}]", typing.get_args(cls)[0], item) for i, item in enumerate(_of(list, data))]
    if isinstance(cls, type) and issubclass(cls, _Union):
        return _union(cls, _of(dict, data))
    if dataclasses.is_dataclass(cls):
        return _record(cls, _of(dict, data))
    if isinstance(cls, type) and issubclass(cls, IntEnum):
        if type(data) is int and data in list(cls):
            return cls(data)
        raise Refusal(f"{shown(data)} is no {cls.__name__}")
    return _scalar(cls, data)


def _scalar(cls: Any, data: Any) -> Any:
    if cls is float and data in _FLOATS:
        return _FLOATS[data]
    if cls is float and type(data) in (int, float):
        return float(data)
    if cls is bool and type(data) is bool:
        return data
    if cls is int and type(data) is int:
        if abs(data) <= _GREATEST:
            return data
        raise Refusal(f"the number {shown(data)} is too large")
    raise Refusal(f"{shown(data)} is no {getattr(cls, '__name__', cls)}")


def _of(kind: type, data: Any) -> Any:
    if type(data) is not kind:
        raise Refusal(f"{shown(data)} is no {kind.__name__}")
    return data


def _at(place: str, cls: Any, data: Any) -> Any:
    try:
        return checked(cls, data)
    except Refusal as refusal:
        raise refusal.at(place) from None


def _union(cls: type[_Union], data: dict[str, Any]) -> Any:
    if len(data) != 1:
        raise Refusal(f"{len(data)} values where one of several is asked for")
    ((name, value),) = data.items()
    hints = _hints(typing.cast(Hashable, cls))
    if name not in hints:
        raise Refusal(f"{shown(name)} is no kind of {cls.__name__}")
    return cls.create(**{name: _field(cls, name, hints[name], value)})


def _record(cls: Any, data: dict[str, Any]) -> Any:
    hints = _hints(cls)
    given = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
    values = {name: _field(cls, name, hints[name], value) for name, value in given.items()}
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise Refusal(f"'{missing[0]}' is missing")
    return cls(**values)


def _field(cls: Any, name: str, hint: Any, value: Any) -> Any:
    """One field: texts, and lists and dicts of or by texts, go by the rule of their place."""
    try:
        place = f"{cls.__name__}.{name}"
        if place in _NOT_TAKEN:
            return _NOT_TAKEN[place](value)
        kind, optional = _plain(hint)
        if optional and value is None:
            return None
        if typing.get_origin(kind) is dict:
            rule, inner = _rule(place), typing.get_args(kind)[1]
            return {rule(_of(str, k)): _at(f"[{shown(k)}]", inner, v) for k, v in _of(dict, value).items()}
        if kind == list[str]:
            rule = _rule(place)
            return [rule(_of(str, text)) for text in _of(list, value)]
        return _rule(place)(_of(str, value)) if kind is str else checked(kind, value)
    except Refusal as refusal:
        raise refusal.at(name) from None


def _plain(hint: Any) -> tuple[Any, bool]:
    """A type without its annotations, and whether None may stand in its place."""
    kind = hint.__origin__ if typing.get_origin(hint) is Annotated else hint
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    (inner,) = (member for member in typing.get_args(kind) if member is not type(None))
    return inner, True


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls, globalns=vars(schema), include_extras=True)


# ---------------------------------------------------------------------- rules


def _rule(place: str) -> Rule:
    """The rule of a text; one that a later torch adds has none, and is refused."""
    if place not in _RULES:
        raise Refusal("is of a newer torch, and nobody has looked at what that does with it")
    return _RULES[place]


def identifier(text: str) -> str:
    """Accept a name that may stand in Python code: torch writes code with the names of values in it."""
    if not _NAME.fullmatch(text) or keyword.iskeyword(text):
        raise Refusal(f"{shown(text)} is not the name of a value")
    return text


def attribute(text: str) -> str:
    """Accept the dotted name of a parameter, buffer or submodule."""
    if text and not all(_PART.fullmatch(part) for part in text.split(".")):
        raise Refusal(f"{shown(text)} is not the name of a parameter, buffer or submodule")
    return text


def payload(text: str) -> str:
    """Accept the name of a member that holds one tensor's bytes."""
    if not _FILE.fullmatch(text):
        raise Refusal(f"{shown(text)} is not the name of a tensor's file", _TENSORS_ONLY)
    return text


def _range_of(text: str) -> str:
    size_expression(text)
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise Refusal(f"{shown(text)} is not a version or a name")
    return text


def _argument(text: str) -> str:
    return identifier(text) if text else ""


def _device(value: Any) -> Any:
    """Everything runs on the CPU here, wherever it was exported."""
    return "cpu" if isinstance(value, str) else _of(str, value)


def _metadata(value: Any) -> dict[str, str]:
    return {name: text for name, text in _of(dict, value).items() if name in _METADATA and isinstance(text, str)}


def _no_objects(value: Any) -> Any:
    if value:
        raise Refusal("holds an object that is not a tensor", _TENSORS_ONLY)
    return {}


def _not_pickled(value: Any) -> bool:
    if value is not False:
        raise Refusal(
            "is pickled, and unpickling can run any code",
            "it is no plain tensor: convert it to one, then " + "export and save again",
        )
    return False


_NOT_TAKEN: dict[str, Callable[[Any], Any]] = {
    "Device.type": _device,
    "Device.index": lambda value: None,
    "Node.metadata": _metadata,
    "GraphModule.metadata": lambda value: {},
    "GraphModule.treespec_namedtuple_fields": lambda value: {},
    "Graph.custom_obj_values": _no_objects,
    "Argument.as_custom_obj": lambda value: _no_objects(True),
    "InputSpec.custom_obj": lambda value: _no_objects(True),
    "PayloadMeta.use_pickle": _not_pickled,
}
_RULES: dict[str, Rule] = {
    "SymExpr.expr_str": size_expression,
    "Node.target": operator,
    "Argument.as_operator": operator,
    # Operators are given these as values; written into code they are quoted by Python itself.
    "Argument.as_string": lambda text: text,
    "Argument.as_strings": lambda text: text,
    "Argument.as_string_to_argument": identifier,
    "ConstantValue.as_string": key,
    "NamedArgument.name": _argument,
    "ModuleCallSignature.in_spec": tree,
    "ModuleCallSignature.out_spec": tree,
    "ExportedProgram.guards_code": guard,
    "ExportedProgram.range_constraints": _range_of,
    "PayloadMeta.path_name": payload,
    **dict.fromkeys(
        (
            *("SymIntArgument.as_name", "SymFloatArgument.as_name", "SymBoolArgument.as_name"),
            *("TensorArgument.name", "TokenArgument.name", "GraphArgument.name", "Node.name"),
            *("Graph.tensor_values", "Graph.sym_int_values", "Graph.sym_bool_values", "Graph.sym_float_values"),
            *("InputToConstantInputSpec.name", "ModuleCallSignature.forward_arg_names"),
            *("GradientToUserInputSpec.user_input_name", "UserInputMutationSpec.user_input_name"),
        ),
        identifier,
    ),
    **dict.fromkeys(
        (
            *("InputToParameterSpec.parameter_name", "InputToBufferSpec.buffer_name"),
            *("InputToTensorConstantSpec.tensor_constant_name", "BufferMutationSpec.buffer_name"),
            *("ParameterMutationSpec.parameter_name", "GradientToParameterSpec.parameter_name"),
            *("ModuleCallEntry.fqn", "PayloadConfig.config"),
        ),
        attribute,
    ),
    **dict.fromkeys(
        ("ExportedProgram.opset_version", "ExportedProgram.verifiers", "ExportedProgram.torch_version"), _word
    ),
}
