"""The schema of parameters and the sentences of its check."""

import pytest
import yaml
from conftest import ROOT

from crema_lib import params
from crema_lib.errors import CremaError
from crema_lib.params import SCHEMA, check, load_profile, parse

PROFILES = ("quick", "ptbxl", "colab")


def refused(values, *words):
    with pytest.raises(CremaError) as error:
        check(values)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_pass_and_name_themselves(profile):
    assert load_profile(profile)["profile"] == profile


def test_profiles_set_the_same_parameters():
    names = [set(yaml.safe_load((ROOT / "params" / f"{profile}.yaml").read_text())) for profile in PROFILES]
    assert names[0] == names[1] == names[2]
    assert names[0] | {"out", "checkpoint"} == set(SCHEMA)


def test_unknown_name_lists_the_known_and_the_closest():
    refused({"sede": 3}, "unknown parameter sede", "did you mean seed?", *SCHEMA)
    refused({"smoke": "false"}, "unknown parameter smoke", "mask_ratio")


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("seed", 1.0, "a whole number"),
        ("seed", True, "a whole number"),
        ("seed", "3", "a whole number"),
        ("seed", None, "a whole number"),
        ("lr", True, "a number"),
        ("lr", "fast", "a number"),
        ("profile", 3, "text"),
        ("tasks", "all", "write [all] in YAML"),
        ("tasks", '["super", "sex"]', 'write ["super", "sex"] in YAML'),
        ("tasks", [], "one or more"),
        ("tasks", [1], "texts"),
    ],
)
def test_wrong_type(name, value, word):
    refused({name: value}, name, word)


def test_words_for_true_and_false_are_not_truth_values():
    assert check({"compile": False}) == {"compile": False}
    refused({"compile": "false"}, "write False")
    refused({"compile": "True"}, "write True")
    refused({"compile": 0}, "True or False")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.5e4"])
def test_yaml_text_that_means_a_number_comes_with_what_to_write(text):
    value = yaml.safe_load(f"lr: {text}")["lr"]
    assert isinstance(value, str), "YAML 1.1 reads this as text"
    with pytest.raises(CremaError) as error:
        check({"lr": value})
    written = str(error.value).rsplit("write ", 1)[1]
    assert yaml.safe_load(written) == float(text)


@pytest.mark.parametrize("name", [p.name for p in SCHEMA.values() if p.type in (int, float)])
def test_bounds_are_inclusive_and_hold(name):
    p = SCHEMA[name]
    assert check({name: p.type(p.low)}) == {name: p.low}
    assert check({name: p.type(p.high)}) == {name: p.high}
    step = 1 if p.type is int else 1e-9 + abs(p.low) * 1e-6
    refused({name: p.type(p.low) - step}, name, "out of range")
    refused({name: p.type(p.high) * 2 + 1}, name, "out of range")


def test_not_a_number_is_out_of_range():
    refused({"lr": float("nan")}, "out of range")
    refused({"lr": float("inf")}, "out of range")


def test_choices():
    refused({"model": "giant"}, "model = 'giant'", "xs, ti, s, b")
    refused({"tasks": ["all", "every"]}, "'every'", "rhythm")


def test_whole_numbers_become_floats_where_floats_are_meant():
    value = check({"lr": 1})["lr"]
    assert value == 1.0
    assert isinstance(value, float)


def test_parse_reads_the_command_line_by_the_schema():
    assert parse("lr", "1e-4") == 1e-4
    assert parse("seed", "3") == 3
    assert parse("profile", "3") == "3"
    assert parse("checkpoint", "") == ""
    assert parse("tasks", "all, super") == parse("tasks", "[all,super]") == ["all", "super"]
    for name, text in (("seed", "three"), ("lr", "fast"), ("seed", "1.5"), ("sede", "3"), ("seed", "[")):
        with pytest.raises(CremaError, match=name):
            parse(name, text)


def test_load_profile_says_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(CremaError, match="no profile quik: known are colab, ptbxl, quick"):
        load_profile("quik")
    for text, word in (("seed: [", "valid YAML"), ("- seed", "name: value"), ("lr: 1e-4", r"1.0e-4"), ("sede: 3", "did you mean seed")):
        path = tmp_path / "p.yaml"
        path.write_text(text)
        with pytest.raises(CremaError, match=word) as error:
            load_profile(path)
        assert str(path) in str(error.value)


def test_every_parameter_says_what_it_means():
    assert all(p.meaning and p.name == name for name, p in SCHEMA.items())
    assert params.SCHEMA is SCHEMA
