"""The generator stops at what it does not know, and says where: a guess would be a wrong column."""

from __future__ import annotations

import ast

import pytest
from tools.catalog import objects, overrides, times
from tools.catalog.annotations import Reader
from tools.catalog.operations import _params
from tools.catalog.source import Module, Place, UnknownShape
from tools.catalog.times import integer_kind, string_kind

from pinstripe.catalog.model import Field, object_types


def made_up(source: str) -> Module:
    """A module of the SDK that never was."""
    tree = ast.parse(source)
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    return Module("stripe._made_up", classes, {})


def fields(body: str, owner: str = "made_up", more: str = "") -> tuple[Field, ...]:
    """The fields of a class with this body."""
    lines = "\n".join("    " + line for line in body.splitlines())
    module = made_up(f"class Thing:\n{lines}\n{more}\n")
    names = {("stripe._made_up", "Other"): "other", ("stripe._made_up", "Second"): "second"}
    return Reader(owner, names).fields(Place(module).inside(module.classes["Thing"]))


OTHERS = "class Other:\n    id: str\nclass Second:\n    id: str"


def test_every_known_shape_is_read() -> None:
    read = fields(
        "\n".join(
            (
                "name: Optional[str]",
                "count: int",
                "rate: float",
                "amount_decimal: Decimal",
                "on: bool",
                "status: Literal['a', 'b']",
                "open_status: Union[Literal['a'], str]",
                "created: int",
                "other: ExpandableField['Other']",
                "either: Union['Other', 'Second']",
                "others: List[ExpandableField['Other']]",
                "lines: ListObject['Other']",
                "metadata: Dict[str, str]",
                "inside: Inner",
                "from_: str",
                "free: Any",
                "class Inner:\n    x: int",
            )
        ),
        more=OTHERS,
    )
    kinds = {f.name: f.kind for f in read}
    assert kinds == {
        "name": "string",
        "count": "integer",
        "rate": "number",
        "amount_decimal": "decimal",
        "on": "boolean",
        "status": "string",
        "open_status": "string",
        "created": "time",
        "other": "expandable",
        "either": "resource",
        "others": "array",
        "lines": "list",
        "metadata": "map",
        "inside": "object",
        "from": "string",
        "free": "any",
    }
    by_name = {f.name: f for f in read}
    assert by_name["name"].nullable
    assert by_name["status"].enum == ("a", "b")
    assert by_name["either"].targets == ("other", "second")
    assert by_name["others"].items is not None
    assert by_name["others"].items.targets == ("other",)


@pytest.mark.parametrize(
    ("annotation", "shape"),
    [
        ("Tuple[int, str]", "Tuple[...]"),
        ("Callable[..., int]", "Callable[...]"),
        ("Union[int, str]", "union of ['integer', 'string']"),
        ("list | None", "list"),
        ("Nowhere", "Nowhere"),
        ("a.b", "a.b"),
    ],
)
def test_an_unknown_shape_stops_it_with_class_field_and_shape(annotation: str, shape: str) -> None:
    with pytest.raises(UnknownShape) as stopped:
        fields(f"odd: {annotation}")
    message = str(stopped.value)
    assert message.startswith("stripe._made_up.Thing.odd: ")
    assert shape in message


def test_an_unknown_shape_is_found_in_nested_classes() -> None:
    with pytest.raises(UnknownShape, match=r"Thing\.Inner\.odd"):
        fields("inside: Inner\nclass Inner:\n    odd: Set[int]")


def test_an_unknown_shape_of_a_parameter_stops_it() -> None:
    module = made_up(
        "class ThingListParams:\n    odd: Set[int]\n"
        "class Service:\n    def list(self, params: ThingListParams): pass"
    )
    function = module.classes["Service"].body[0]
    assert isinstance(function, ast.FunctionDef)
    with pytest.raises(UnknownShape, match=r"ThingListParams: parameter Set\[int\]"):
        _params(module, function)


@pytest.mark.parametrize("name", ["happened_at", "valid_until", "moment_time"])
def test_an_integer_that_looks_like_a_time_must_be_decided(name: str) -> None:
    with pytest.raises(UnknownShape, match=rf"made_up\.{name}: is it a time"):
        integer_kind("made_up", name, "")


def test_an_integer_whose_text_speaks_of_a_time_must_be_decided() -> None:
    with pytest.raises(UnknownShape, match="is it a time"):
        integer_kind("made_up", "moment", "Measured in seconds since the Unix epoch.")


def test_a_string_of_v2_that_looks_like_a_time_must_be_decided() -> None:
    assert string_kind("v2.core.event", "created", "") == "time_iso"
    assert string_kind("charge", "created", "") == "string"
    with pytest.raises(UnknownShape, match="is it a time"):
        string_kind("v2.core.event", "happened_at", "")


@pytest.mark.parametrize("name", ["divide_by", "next_invoice_sequence", "quantity", "version"])
def test_reviewed_exceptions_are_no_times(name: str) -> None:
    assert integer_kind("made_up", name, "the time of") == "integer"


def test_an_undecided_event_type_stops_it() -> None:
    with pytest.raises(UnknownShape, match="what does it carry"):
        objects._carries("nobody.knows", {"charge"})


@pytest.mark.parametrize(
    ("table", "entry"),
    [
        ("ALWAYS_SENT", "nothing"),
        ("ON_REQUEST", "charge.nothing"),
        ("DELETABLE", "nothing"),
        ("NOT_DELETABLE", "nothing"),
        ("PREFIXES", "nothing"),
        ("REFERENCES", "charge.nothing"),
    ],
)
def test_an_override_that_matches_nothing_stops_it(
    monkeypatch: pytest.MonkeyPatch, table: str, entry: str
) -> None:
    before = getattr(overrides, table)
    after = before | ({entry: ()} if isinstance(before, dict) else {entry})
    monkeypatch.setattr(overrides, table, after)
    with pytest.raises(
        UnknownShape, match=r"overrides that match nothing: \['(charge\.)?nothing'\]"
    ):
        objects.object_types()


def test_a_key_that_the_sdk_knows_by_now_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(overrides.ALWAYS_SENT, "charge", (Field(name="amount", kind="integer"),))
    with pytest.raises(UnknownShape, match=r"charge: the SDK knows \['amount'\] now"):
        objects.object_types()


def test_every_decided_time_name_is_met() -> None:
    """A name in a list of times.py that no integer has any more is stale."""

    def names(found: tuple[Field, ...], kind: str) -> set[str]:
        met: set[str] = set()
        for field in found:
            met |= {field.name} if field.kind == kind else set()
            met |= names(field.fields, kind)
            if field.items is not None:
                item = field.items
                inner = Field(field.name, item.kind, fields=item.fields, items=item.items)
                met |= names((inner,), kind)
        return met

    met = {
        kind: set().union(*(names(t.fields, kind) for t in object_types().values()))
        for kind in ("time", "time_iso", "integer", "string")
    }
    assert met["time"] >= times.TIMES
    assert met["integer"] >= times.NOT_TIMES
    assert met["time_iso"] >= times.ISO_TIMES
    assert met["string"] >= times.NOT_ISO_TIMES - {"events_from"}
