"""What an option is: a field of a command's dataclass that carries its help, bounds and place on the command line.

`config.py` has the options, `cli.py` makes the command line of them. Only the standard library is imported, so that
`spatialfeat --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from spatialfeat.errors import SpatialfeatError


@dataclass(frozen=True)
class Rule:
    """What a value must be: `must` completes "--lr 0: must ..."."""

    holds: Callable[[Any], bool]
    must: str


def at_least(minimum: int) -> Rule:
    """Whole numbers from `minimum` on."""
    return Rule(lambda value: bool(value >= minimum), f"be at least {minimum}")


def one_of(*choices: str) -> Rule:
    """One of some words."""
    return Rule(lambda value: value in choices, f"be one of {', '.join(choices)}")


def positive(what: str) -> Rule:
    """Numbers above 0. `what` completes "be a positive number", with an example."""
    return Rule(lambda value: bool(0 < value < float("inf")), f"be a positive number{what}")


@dataclass(frozen=True)
class Option:
    """What the command line says of a field, and which values it takes (None, where a field has it, always).

    heading: under which the help lists it. flag: the option without dashes, where it is not the field's name; of a
    switch that is on by default, "no-..." is the only one to type.
    unset: what happens where the value is None, shown as the default. metavar: what the help shows for the value; for
    a positional argument its name. parse: makes the value of the text that was typed.
    """

    help: str
    heading: str
    rule: Rule | None = None
    flag: str = ""
    unset: object = ""
    metavar: str = ""
    is_argument: bool = False
    parse: Callable[[str], Any] | None = None

    def field(self, default: Any = MISSING, **changes: Any) -> Any:
        """A dataclass field that carries this option, with some of its attributes changed."""
        return field(default=default, metadata={"option": replace(self, **changes)})


class Heading(str):
    """A heading of the help."""

    def option(self, default: Any, help: str, rule: Rule | None = None, **more: Any) -> Any:
        """A dataclass field with an option of its own under this heading: see `Option`."""
        return self.shared(help, rule, **more).field(default)

    def shared(self, help: str, rule: Rule | None = None, **more: Any) -> Option:
        """An option for several fields."""
        return Option(help, self, rule, **more)


class Options:
    """Base of the dataclasses in `config.py`: refuses values that break a field's rule, naming the option."""

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            value = getattr(self, name)
            if value is not None and option.rule is not None and not option.rule.holds(value):
                shown = f"{value:g}" if isinstance(value, float) else value
                raise SpatialfeatError(f"{flag_of(type(self), name)} {shown}: must {option.rule.must}")

    def refuse(self, names: Iterable[str], reason: str) -> None:
        """Refuse the options of these fields where they are given: they would do nothing. reason: why, or where."""
        given = [name for name in names if getattr(self, name) != getattr(type(self), name)]
        if given:
            does, it = ("does", "it") if len(given) == 1 else ("do", "them")
            flags = ", ".join(flag_of(type(self), name) for name in given)
            raise SpatialfeatError(f"{flags} {does} nothing {reason}; leave {it} out")


def options_of(kind: type[Options]) -> dict[str, Option]:
    """{field: its option} of a command's dataclass, in its order."""
    return {field.name: field.metadata["option"] for field in fields(kind)}  # type: ignore[arg-type]


def flag_of(kind: type[Options], name: str) -> str:
    """`--image-size` for the field `image_size_px`, `FORMAT` for a positional argument: as messages name an option."""
    option = options_of(kind)[name]
    return option.metavar if option.is_argument else f"--{option.flag or name.replace('_', '-')}"


def read_colours(flag: str, text: str) -> tuple[float, float, float]:
    """`0.485,0.456,0.406`: three numbers on the scale 0 to 1, for red, green and blue."""
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError as error:
        raise SpatialfeatError(f"{flag} {text}: must be three numbers R,G,B, e.g. 0.485,0.456,0.406") from error
    lowest = 1e-6 if flag == "--std" else 0  # What is divided by must not be 0.
    if not all(lowest <= value <= 1 for value in (red, green, blue)):
        raise SpatialfeatError(
            f"{flag} {text}: must lie between {lowest:g} and 1, where 1 is the brightest value; divide numbers on the "
            "scale 0 to 255 by 255"
        )
    return red, green, blue
