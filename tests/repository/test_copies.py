"""What stands in two places is the same in both."""

from tests.ground.needs import ROOT


def test_the_chart_s_definitions_are_those_of_crds() -> None:
    """Byte for byte: ``cp crds/*.yaml charts/merlin/files/crds/``."""
    theirs, ours = (
        {path.name: path.read_text() for path in (ROOT / folder).glob("*.yaml")}
        for folder in ("charts/merlin/files/crds", "crds")
    )
    assert [name for name in ours if theirs.get(name) != ours[name]] == []
    assert theirs.keys() == ours.keys()
