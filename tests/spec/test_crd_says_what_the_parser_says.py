"""`crds/study.yaml` and `merlin_study.spec`, compared field by field; and what holds for every schema that we ship."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from merlin_study import checks, spec
from merlin_study.spec import StudySpec

CRDS = Path(__file__).resolve().parents[2] / "crds"
COMPARED = (
    *("type", "description", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems"),
    *("maxItems", "maxProperties", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"),
)


def crd(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CRDS / name).read_text())
    return loaded


def schema_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = crd(name)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def flatten(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a structural schema, by path."""
    yield path, {key: node[key] for key in COMPARED if key in node}
    for name, child in node.get("properties", {}).items():
        yield from flatten(child, f"{path}.{name}")
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(node.get(key), dict):
            yield from flatten(node[key], path + suffix)


def structural(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Pydantic's schema in the form of a CRD's: references followed, `or null` and defaults dropped."""
    described = {"description": node["description"]} if "description" in node else {}
    node = next((option for option in node.get("anyOf", []) if option != {"type": "null"}), node)
    if "$ref" in node:
        block = definitions[node["$ref"].split("/")[-1]]
        return structural(
            {**block, "description": inspect.cleandoc(block["description"]).splitlines()[0], **described}, definitions
        )
    made = {**{key: node[key] for key in COMPARED if key in node}, **described}
    if "properties" in node:
        made["properties"] = {name: structural(child, definitions) for name, child in node["properties"].items()}
    if "items" in node:
        made["items"] = structural(node["items"], definitions)
    if isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = structural(node["additionalProperties"], definitions)
    if node.get("additionalProperties") is True:
        made["x-kubernetes-preserve-unknown-fields"] = True
    return made


def test_schema_and_parser_agree_on_every_field() -> None:
    """Names, types, what is required, words, bounds and descriptions; in the same order."""
    parser = StudySpec.model_json_schema(by_alias=True)
    expected = dict(flatten(structural(parser, parser["$defs"]), "spec"))
    found = dict(flatten(schema_of("study.yaml")["properties"]["spec"], "spec"))
    assert list(found) == list(expected)
    for path, node in expected.items():
        assert found[path] == node, path


def test_rules_in_cel_use_the_parsers_limits() -> None:
    study = schema_of("study.yaml")["properties"]["spec"]["properties"]["study"]
    rules = " ".join(rule["rule"] for rule in study["x-kubernetes-validations"])
    assert f"<= {spec.MAX_SCRIPT_CHARACTERS}" in rules
    name = study["items"]["properties"]["name"]
    assert name["maxLength"] == checks.MAX_NAME_BYTES
    for refused in re.findall(r"'([^']+)'", name["x-kubernetes-validations"][0]["rule"]):
        assert checks.check_step_name(refused, "p") is not None


def test_science_is_immutable_and_nothing_else_is() -> None:
    """A field that is added has to be put on one side, here and in the rule."""
    operational = {
        *("suspend", "cancel", "priority", "maxInFlight", "purge", "restart"),
        *("ttlSecondsAfterFinished", "deletionPolicy", "rehearse"),
    }
    schema = schema_of("study.yaml")
    (rule,) = (rule for rule in schema["x-kubernetes-validations"] if "oldSelf" in rule["rule"])
    compared = {
        name.replace("__dot__", ".") for name in re.findall(r"self\.spec\.(\w+) == oldSelf\.spec\.\1", rule["rule"])
    }
    assert compared == set(schema["properties"]["spec"]["properties"]) - operational
    assert all(name in rule["message"] for name in operational)


@pytest.mark.parametrize("name", ["study.yaml", "allocation.yaml"])
def test_every_field_is_described_and_bounded(name: str) -> None:
    """So that `kubectl explain` answers, and no object or rule can grow without end."""
    for path, node in flatten(schema_of(name), ""):
        where = f"{name}{path}"
        if path != ".metadata" and not path.endswith(("[]", "{}")):
            assert node.get("description"), where
            assert node["description"][-1] == ".", where
        match node.get("type"):
            case "array":
                assert "maxItems" in node, where
            case "string":
                closed = (
                    "maxLength" in node or "enum" in node or path in {".apiVersion", ".kind"} or path.endswith("Time")
                )
                assert closed or path.rsplit(".", 1)[-1] in {"estimatedEnd", "time", "lastHeartbeat", "firstSeen"}, (
                    where
                )
            case None:
                assert node.get("x-kubernetes-int-or-string") or node["x-kubernetes-preserve-unknown-fields"], where
                assert "maxLength" in node or "maximum" in node, where
            case _:
                pass


@pytest.mark.parametrize("name", ["study.yaml", "allocation.yaml"])
def test_maps_with_free_keys_are_bounded(name: str) -> None:
    def walk(node: dict[str, Any], path: str) -> None:
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
            walk(node["additionalProperties"], path + "{}")
        for key, child in node.get("properties", {}).items():
            walk(child, f"{path}.{key}")
        if "items" in node:
            walk(node["items"], path + "[]")

    walk(schema_of(name), name)


@pytest.mark.parametrize(
    ("name", "kind", "short"), [("study.yaml", "Study", "stdy"), ("allocation.yaml", "Allocation", "alloc")]
)
def test_resources_are_named_as_agreed(name: str, kind: str, short: str) -> None:
    definition = crd(name)
    names = definition["spec"]["names"]
    assert (definition["spec"]["group"], definition["spec"]["scope"]) == ("merlin.dev", "Namespaced")
    assert (names["kind"], names["shortNames"], names["categories"]) == (kind, [short], ["all", "merlin"])
    assert definition["metadata"]["name"] == f"{names['plural']}.merlin.dev"
    (version,) = definition["spec"]["versions"]
    assert (version["name"], version["subresources"]) == ("v1alpha1", {"status": {}})


@pytest.mark.parametrize("name", ["study.yaml", "allocation.yaml"])
def test_printer_columns_show_fields_that_exist(name: str) -> None:
    paths = dict(flatten(schema_of(name), ""))
    for column in crd(name)["spec"]["versions"][0]["additionalPrinterColumns"]:
        assert column["jsonPath"] in paths or column["jsonPath"] == ".metadata.creationTimestamp"
        assert column["description"].endswith(".")
