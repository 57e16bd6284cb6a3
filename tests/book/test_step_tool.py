"""What "Step through a block" loads: weights there and back, and the code of the chapters."""

import ast
import inspect
import textwrap

import make_step
import pytest
import torch

from densenet_tutorial import DenseBlock, DenseLayer


def test_weights_are_the_same_when_they_are_read_again(tmp_path):
    torch.manual_seed(1)
    model = make_step.small_network().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                tensor.uniform_(0.5, 2)
    (tmp_path / "data.js").write_bytes(make_step.script(model))
    again = make_step.stored(tmp_path / "data.js")
    picture = torch.randn(1, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(picture), model(picture)) and not again.training


def test_what_is_stored_is_a_network_that_tells_most_clothes_apart():
    content = make_step.content_of(make_step.TARGET)
    assert content["right"] > 0.8 * content["tested"] and content["trainedOn"] == 5000
    assert (content["layers"], content["channels"], content["growthRate"]) == (4, 8, 4)


@pytest.mark.parametrize("name", make_step.CODE)
def test_the_code_is_the_packages_too(name):
    owner = {"DenseBlock": DenseBlock, "DenseLayer": DenseLayer}[name.split(".")[0]]
    package = textwrap.dedent(inspect.getsource(getattr(owner, name.split(".")[1])))
    listed = textwrap.dedent("\n".join(make_step.listed(make_step.CODE[name], name)))

    tree = [ast.parse(text).body[0] for text in (listed, package)]
    for function in tree:
        if ast.get_docstring(function) is not None:
            del function.body[0]
    assert ast.dump(tree[0]) == ast.dump(tree[1])


def test_a_chapter_without_it_is_named():
    with pytest.raises(ValueError, match="03_dense_block does not list DenseLayer.forward"):
        make_step.listed("03_dense_block", "DenseLayer.forward")
