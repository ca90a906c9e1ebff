"""What is shipped: files as their cards say, names with near misses, and the same bits from the same recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding import pretrained
from deep_sparse_coding.pretrained import NAMES, load_pretrained, pretrained_card
from deep_sparse_coding.pretrained.learn import judge, main, write_pretrained
from deep_sparse_coding.pretrained.photographs import HELD_OUT, PHOTOGRAPHS, pixel_digest, read_photograph
from deep_sparse_coding.pretrained.recipes import RECIPES, Recipe, patches, training_data

FOLDER = Path(pretrained.__file__).parent


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_what_its_card_says(name: str) -> None:
    content = (FOLDER / f"{name}.safetensors").read_bytes()
    card = pretrained_card(name)
    assert len(content) == card["bytes"] <= 1 << 20
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    model = load_pretrained(name)
    assert model.dtype == torch.float32
    layers = model.layers if isinstance(model, dsc.Cascade) else (model,)
    assert [list(layer.weight.shape) for layer in layers] == card["shapes"]
    assert [layer.mutual_coherence() for layer in layers] == pytest.approx(card["coherence"], rel=1e-6)
    for layer in layers:
        assert torch.allclose(layer.column_norms(), torch.ones(layer.atoms, dtype=torch.float64), atol=1e-5)
    recipe = RECIPES[name]
    assert card["settings"]["atoms"] == list(recipe.atoms) == [layer.atoms for layer in layers]
    assert card["settings"]["lam"] == list(recipe.lam)
    assert card["dead_atoms"] == [0] * len(layers)
    assert HELD_OUT.name not in {image["name"] for image in card["images"]}
    assert all(image["license"] in ("CC0 1.0", "CC BY 2.0", "public domain") for image in card["images"])


def test_names_shapes_and_kinds() -> None:
    assert load_pretrained("dense-grey-8").weight.shape == (64, 256)
    assert load_pretrained("conv-grey-64").weight.shape == (64, 1, 11, 11)
    assert load_pretrained("conv-colour-32").weight.shape == (32, 3, 8, 8)
    cascade = load_pretrained("cascade-grey")
    assert isinstance(cascade, dsc.Cascade)
    assert [layer.atoms for layer in cascade.layers] == [32, 64]
    assert int((cascade.layers[1].weight != 0).flatten(1).sum(1).max()) <= 8
    assert sorted(path.stem for path in FOLDER.glob("*.safetensors")) == sorted(NAMES) == sorted(RECIPES)


@pytest.mark.parametrize("ask", [load_pretrained, pretrained_card])
def test_unknown_names_get_near_misses(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(dsc.NameMatchError, match="'conv-gray-64'; did you mean 'conv-grey-64'"):
        ask("conv-gray-64")
    with pytest.raises(dsc.NameMatchError, match="expected one of dense-grey-8, conv-grey-64"):
        ask("../conv")
    with pytest.raises(dsc.NameMatchError, match="is named 3"):
        ask(3)


def test_the_card_of_a_dense_dictionary_is_reached_again() -> None:
    card = pretrained_card("dense-grey-8")
    again = judge(RECIPES["dense-grey-8"], load_pretrained("dense-grey-8"))
    assert again["objective"] == pytest.approx(card["held_out"]["objective"], rel=1e-3)
    assert again["psnr"] == pytest.approx(card["held_out"]["psnr"], abs=0.01)
    # Random atoms do clearly worse at the same lam: something was learned.
    random = dsc.DenseDictionary.random(64, 256, seed=0, dtype=torch.float32)
    assert judge(RECIPES["dense-grey-8"], random)["objective"][0] > 1.3 * again["objective"][0]


SMALL = (
    Recipe("dense-grey-8", (12,), (4,), (0.1,), epochs=2, samples=400, photographs=PHOTOGRAPHS[2:4]),
    Recipe("conv-grey-64", (4,), (5,), (1.0,), 2, samples=4, crop=24, photographs=PHOTOGRAPHS[2:4]),
    Recipe("cascade-grey", (4, 6), (4, 3), (1.0, 0.5), 2, 4, 24, (2, 1), nonzeros=3, photographs=PHOTOGRAPHS[2:4]),
    Recipe("conv-colour-32", (4,), (4,), (1.0,), 1, 4, crop=24, color=True, photographs=PHOTOGRAPHS[3:5]),
)


@pytest.mark.parametrize("recipe", SMALL, ids=lambda recipe: recipe.name)
def test_the_same_recipe_gives_the_same_bits(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deep_sparse_coding.pretrained.learn._SIDE", 48)
    before = torch.get_rng_state()
    files = [write_pretrained(recipe, tmp_path / where) for where in ("one", "two")]
    assert torch.equal(before, torch.get_rng_state())
    assert files[0].read_bytes() == files[1].read_bytes()
    cards = [json.loads(path.with_suffix(".json").read_text()) for path in files]
    assert cards[0] == cards[1]
    assert cards[0]["sha256"] == hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert len(cards[0]["held_out"]["psnr"]) == len(recipe.atoms)
    other = write_pretrained(dataclasses.replace(recipe, seed=1), tmp_path / "three")
    assert other.read_bytes() != files[0].read_bytes()


def test_the_command_writes_file_and_card_and_leaves_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deep_sparse_coding.pretrained.learn._SIDE", 48)
    monkeypatch.setitem(RECIPES, "dense-grey-8", SMALL[0])
    threads = torch.get_num_threads()
    main(["dense-grey-8", "--out", str(tmp_path / "models")])
    assert torch.get_num_threads() == threads
    assert "epoch 2/2" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "dense-grey-8.json",
        "dense-grey-8.safetensors",
    ]
    with pytest.raises(SystemExit):
        main(["dense"])
    assert "invalid choice: 'dense'" in capsys.readouterr().err


def test_photographs_are_those_that_were_learned_from() -> None:
    for image in pretrained_card("dense-grey-8")["images"]:
        (photograph,) = (p for p in PHOTOGRAPHS if p.name == image["name"])
        assert pixel_digest(photograph) == image["pixels_sha256"]


def test_photographs_as_tensors() -> None:
    camera, chelsea = PHOTOGRAPHS[2], PHOTOGRAPHS[3]
    assert read_photograph(camera).shape == (1, 512, 512)
    assert read_photograph(camera, color=True).shape == (3, 512, 512)
    color = read_photograph(chelsea, color=True)
    assert torch.allclose(
        read_photograph(chelsea)[0], torch.einsum("chw,c->hw", color, color.new_tensor([0.299, 0.587, 0.114]))
    )
    assert 0 <= float(color.min()) < float(color.max()) <= 1
    assert read_photograph(PHOTOGRAPHS[0]).shape == (1, 213, 320)


def test_training_data_have_no_means_and_come_from_every_photograph() -> None:
    data = training_data(SMALL[0])
    assert data.shape == (400, 16)
    assert float(data.mean(1).abs().max()) < 1e-6
    assert float(data.square().mean(1).sqrt().min()) > 0.019
    image = torch.arange(30.0).reshape(1, 5, 6)
    assert patches(image, 2).shape == (20, 4)
    assert patches(image, 2, 3).tolist() == [[-3.5, -2.5, 2.5, 3.5]] * 4
