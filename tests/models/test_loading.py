"""Initial weights of backbones: what they report, and which checkpoints they refuse."""

import pytest
import torch
from mmengine.runner import load_checkpoint

from mmvssm.families.key_map import KeyMap
from mmvssm.models import LocalVim, MSVMamba, Vim, VMamba

HIERARCHICAL = dict(embed_dims=8, depths=(1, 1, 1, 1))
PLAIN = dict(embed_dims=8, num_layers=4)
FAMILIES = {
    "vmamba": (VMamba, HIERARCHICAL),
    "msvmamba": (MSVMamba, HIERARCHICAL),
    "vim": (Vim, PLAIN),
    "local_vim": (LocalVim, PLAIN),
}


@pytest.fixture(params=FAMILIES)
def original(request, tmp_path):
    """A backbone, and a file of its authors, with other names."""
    backbone, arch = FAMILIES[request.param]
    # Vim's detectors and segmentors have no norms of outputs
    model = backbone(arch, out_norm=request.param != "vim")
    weights = KeyMap(request.param, "dense").to_original(model.state_dict(prefix="backbone."))
    path = tmp_path / "authors.pth"
    torch.save({"model": weights, "state_dict": weights}, path)
    return model, path


@pytest.mark.parametrize("entry", ["model", "state_dict", "bare"])
def test_files_of_the_authors_are_refused(original, entry, tmp_path):
    model, path = original
    weights = torch.load(path, weights_only=True)[entry if entry != "bare" else "model"]
    weights = {key.removeprefix("backbone."): value for key, value in weights.items()}
    path = tmp_path / "other.pth"
    torch.save(weights if entry == "bare" else {entry: weights}, path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="does not hold mmvssm's weights") as error:
        load_checkpoint(model, str(path))
    assert "'mmvssm://FILE'" in str(error.value) and "tools/convert_ema.py" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_start_that_is_no_file_of_ours_names_the_line_to_use(original):
    model, path = original
    init = dict(type="Pretrained", checkpoint=str(path), prefix="nothing.")
    started = type(model)(HIERARCHICAL if hasattr(model, "stages") else PLAIN, init_cfg=init)
    with pytest.raises(RuntimeError, match=rf"checkpoint='mmvssm://{path}'"):
        started.init_weights()


def test_a_random_start_is_said(monkeypatch):
    said = []
    monkeypatch.setattr(
        "mmvssm.models.layers.loading.print_log", lambda text, logger: said.append(text)
    )
    model = VMamba(HIERARCHICAL)
    model.init_weights()
    (line,) = said
    assert line == "VMamba starts from random weights: its init_cfg names no checkpoint"


def test_parts_of_a_network_load():
    """Another depth, or an additional head, is no reason to refuse a checkpoint."""
    deeper, model = VMamba(dict(HIERARCHICAL, depths=(1, 1, 2, 1))), VMamba(HIERARCHICAL)
    incompatible = deeper.load_state_dict(model.state_dict(), strict=False)
    assert not incompatible.unexpected_keys
    assert {key.split(".")[:4][3] for key in incompatible.missing_keys} == {"1"}
    assert torch.equal(deeper.patch_embed.conv1.weight, model.patch_embed.conv1.weight)


@pytest.mark.parametrize("backbone", [VMamba, LocalVim])
def test_norms_of_other_outputs_start_anew(backbone):
    arch, last = (HIERARCHICAL, 3) if backbone is VMamba else (PLAIN, -1)
    classifier = backbone(arch, out_indices=last)
    weights = {key: torch.full_like(value, 0.5) for key, value in classifier.state_dict().items()}
    same = backbone(arch, out_indices=last)
    same.load_state_dict(weights)
    norm = "norm3" if backbone is VMamba else "norm0"
    assert getattr(same, norm).weight.eq(0.5).all()
    dense = backbone(arch, out_indices=(2, 3))
    missing = dense.load_state_dict(weights, strict=False).missing_keys
    assert missing and all(key.startswith("norm") for key in missing)
    assert getattr(dense, norm).weight.eq(1.0).all()


class TestPositionGrids:
    """Tests that the grid of a position embedding is stored with it."""

    @staticmethod
    def vim(size):
        return Vim(dict(embed_dims=8, num_layers=2), img_size=size).eval()

    @pytest.mark.parametrize("size", [(128, 512), (512, 128), (64, 1024), (224, 448)])
    def test_resized_from_the_true_grid(self, size, recwarn):
        given, square = self.vim(size), self.vim((256, 256))
        square.load_state_dict(given.state_dict())
        assert not [w for w in recwarn if "grid" in str(w.message)]
        grid = (size[0] // 16, size[1] // 16)
        expected = given.positions.at(given.pos_embed, (16, 16))
        assert torch.equal(square.pos_embed, expected)
        assert given.state_dict()["pos_grid"].shape == (*grid, 0)
        again = self.vim(size)
        again.load_state_dict(given.state_dict())
        assert torch.equal(again.pos_embed, given.pos_embed)

    def test_a_checkpoint_that_does_not_say_its_grid(self):
        given, wide = self.vim((256, 256)), self.vim((128, 512))
        weights = given.state_dict()
        del weights["pos_grid"]
        with pytest.warns(UserWarning, match="assuming 8x32 patches"):
            wide.load_state_dict(weights)
        with pytest.warns(UserWarning, match="assuming 16x16 patches, resized to 16x32"):
            self.vim((256, 512)).load_state_dict(weights)

    def test_a_grid_that_is_not_the_tables(self):
        given, other = self.vim((256, 256)), self.vim((224, 224))
        weights = given.state_dict() | {"pos_grid": torch.empty(5, 7, 0)}
        with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
            other.load_state_dict(weights)
