from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathgen.config import Config, build, load_config, merge, parse_overrides, to_yaml
from pathgen.errors import ConfigError


class Inner(Config):
    lr: float = 1e-3
    steps: int | None = None


class Outer(Config):
    inner: Inner = Inner()
    alphas: tuple[float, ...] = (0.2,)
    name: str = "x"


def test_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("inner: {lr: 0.1, steps: 3}\nname: from file\n")
    config = load_config(Outer, file, ["inner.lr=1e-4", "alphas=[0.5, 1]"], base={"name": "base"})
    assert config == Outer(inner=Inner(lr=1e-4, steps=3), alphas=(0.5, 1.0), name="from file")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.step=3", "Did you mean 'steps'"),
        ("inner.lr=fast", "inner.lr"),
        ("inner=3", "inner"),
        ("inner.steps=1.5", "inner.steps"),
        ("justakey", "KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, overrides=[override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "given twice"),
        ("- a\n- b\n", "not a mapping"),
        ("name: [\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(Outer, file)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "y"  # type: ignore[misc]


def test_yaml_brings_the_same_config_back(tmp_path: Path) -> None:
    config = Outer(inner=Inner(lr=3e-5), alphas=(0.1, 0.9), name="ä: b")
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(Outer, file) == config


nested = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abc"), nested, max_size=3)


@given(mappings, mappings)
def test_merging_keeps_everything_that_is_not_overridden(base: dict, over: dict) -> None:
    result = merge(base, over)
    assert result.keys() == base.keys() | over.keys()
    for key, value in over.items():
        if not isinstance(value, dict):
            assert result[key] == value
    assert merge(base, {}) == base
    assert merge(result, over) == result


def test_overrides_nest() -> None:
    assert parse_overrides(["a.b=1", "a.c=2", "d=x"]) == {"a": {"b": 1, "c": 2}, "d": "x"}


def test_building_from_a_wrong_type_names_the_file() -> None:
    with pytest.raises(ConfigError, match="alphas"):
        build(Outer, {"alphas": 3}, where="recipe.yaml")
