"""Test models that are of another kind than the option that names them."""

import pytest
import tfiseg
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.networks.session import DEFAULT_MODEL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": DEFAULT_INSTANCE_MODEL}, "is an instance network, expected a semantic.*instance_model"),
        ({"instance_model": DEFAULT_MODEL}, "is no instance network: leave `instance_model`"),
        (
            {"model": "/"},
            "^can't read the model /: Is a directory. ONNX Runtime can't load a folder: name a model file",
        ),
        (
            {"instance_model": "/"},
            "^can't read the model /: Is a directory. ONNX Runtime can't load a folder: name a model file",
        ),
        ({"model": __file__}, r"can't load .*A model is an \.onnx file"),
    ],
)
def test_another_file_than_a_model(options, message):
    with pytest.raises(tfiseg.ModelError, match=message):
        tfiseg.Segmenter(quality="best", **options)


@pytest.mark.parametrize("name", ["model", "instance_model"])
def test_an_empty_name_is_not_the_default(name):
    # an unset variable of a shell, --model "$MODEL", ran another network than the one that was meant
    with pytest.raises(tfiseg.InputError, match=f"{name} is empty"):
        tfiseg.Segmenter(quality="best", **{name: ""})
    with pytest.raises(tfiseg.ModelError):
        tfiseg.Refiner("")
