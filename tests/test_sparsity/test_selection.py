"""Targets: what each kind means, and what an entry that matches nothing says."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from deep_sparse_coding.errors import NameMatchError, ParameterError
from deep_sparse_coding.sparsity import select
from deep_sparse_coding.sparsity.watching.selection import match_settings


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)), nn.ReLU6()
        )
        self.head = nn.Linear(4, 2)


def test_type_takes_every_instance_in_the_models_order() -> None:
    assert list(select(Net(), [nn.ReLU])) == ["features.1", "features.2.1"]
    assert list(select(Net(), [nn.Linear, nn.ReLU])) == ["features.1", "features.2.1", "head"]


def test_single_target_needs_no_list() -> None:
    net = Net()
    assert list(select(net, nn.ReLU)) == ["features.1", "features.2.1"]
    assert list(select(net, "head")) == ["head"]
    assert list(select(net, net.head)) == ["head"]
    assert list(select(net, lambda name, module: name == "head")) == ["head"]


def test_glob_takes_the_innermost_modules() -> None:
    expected = ["features.0", "features.1", "features.2.0", "features.2.1", "features.3"]
    assert list(select(Net(), ["features.*"])) == expected
    assert list(select(Net(), ["features.?"])) == ["features.0", "features.1", "features.2", "features.3"]
    assert list(select(Net(), ["fea*"])) == expected


def test_regular_expression_matches_the_whole_name() -> None:
    assert list(select(Net(), [re.compile(r"features\.\d")])) == [
        "features.0",
        "features.1",
        "features.2",
        "features.3",
    ]
    with pytest.raises(NameMatchError, match="must match the whole name"):
        select(Net(), [re.compile("features[.]")])


def test_exact_name_of_a_container_takes_the_container() -> None:
    assert list(select(Net(), ["features"])) == ["features"]


def test_overlapping_targets_take_a_module_once() -> None:
    assert list(select(Net(), ["features.1", nn.ReLU, "features.[1]"])) == ["features.1", "features.2.1"]


def test_the_model_itself_can_be_meant_but_not_by_a_pattern() -> None:
    relu = nn.ReLU()
    assert select(relu, [nn.ReLU]) == {"": relu}
    with pytest.raises(NameMatchError, match="no submodules"):
        select(relu, ["*"])


def test_shared_module_is_taken_once_and_found_under_either_name() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net.append(net[1])
    assert list(select(net, [nn.ReLU])) == ["1"]
    assert select(net, ["3"]) == {"1": net[1]}


def test_names_of_a_compiled_model_are_those_of_the_model() -> None:
    net = Net()
    compiled = torch.compile(net, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert select(compiled, ["features.1", "head"]) == {
        "features.1": net.features[1],
        "head": net.head,
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("feautres.1", r"'feautres.1', which matches no module of Net; did you mean 'features.1'"),
        ("feature.*", r"'feature.\*', which matches no module of Net; did you mean 'features"),
        (nn.Conv1d, r"type Conv1d, which matches no module of Net; did you mean 'Conv2d'.*its types: .*ReLU \(2\)"),
        (nn.GELU, r"type GELU.*its types: .*Linear \(1\).*its names: 'features', 'features.0'"),
        (lambda name, module: False, "predicate <lambda>, which matches no module"),
        (nn.Linear(1, 1), "module Linear .it is not part of the model."),
    ],
)
def test_entry_that_matches_nothing_is_named_though_others_match(entry: object, message: str) -> None:
    with pytest.raises(NameMatchError, match=message):
        select(Net(), [nn.ReLU, entry])  # type: ignore[list-item]


@pytest.mark.parametrize("targets", [[], 3, [3], [int], None])
def test_wrong_kinds_are_refused(targets: object) -> None:
    with pytest.raises(ParameterError, match="targets"):
        select(Net(), targets)  # type: ignore[arg-type]


def test_model_must_be_a_module() -> None:
    with pytest.raises(ParameterError, match=r"model is a str; expected a torch.nn.Module"):
        select("net", [nn.ReLU])  # type: ignore[arg-type]


def test_settings_prefer_exact_names() -> None:
    names = ["features.1", "features.2", "head"]
    assert match_settings({"*": 1.0, "head": 2.0}, names, "weight") == {"features.1": 1, "features.2": 1, "head": 2}
    assert match_settings({"1": 2.0, "?": 1.0}, ["1", "3"], "weight") == {"1": 2, "3": 1}


def test_settings_must_match_cover_and_agree() -> None:
    names = ["features.1", "head"]
    with pytest.raises(NameMatchError, match=r"weight has the key 'feature.1'.*did you mean 'features.1'"):
        match_settings({"feature.1": 1.0, "*": 1.0}, names, "weight")
    with pytest.raises(ParameterError, match="no value for 'head'"):
        match_settings({"features.1": 1.0}, names, "weight")
    with pytest.raises(ParameterError, match=r"gives 'features.1' two values"):
        match_settings({"*": 1.0, "f*": 2.0}, names, "weight")
