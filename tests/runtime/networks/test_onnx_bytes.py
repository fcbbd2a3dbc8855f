"""Test the removal of outputs from an ONNX file, with the nodes that only these outputs need."""

import numpy as np
import onnxruntime
import pytest
from tfiseg.runtime.networks.instance_session import DEFAULT_INSTANCE_MODEL
from tfiseg.runtime.networks.onnx_bytes import with_outputs
from tfiseg.runtime.networks.open_session import open_instance_session


def test_nodes_of_other_outputs_are_removed():
    onnx = pytest.importorskip("onnx")
    whole = DEFAULT_INSTANCE_MODEL.read_bytes()
    complete = onnx.load_from_string(whole)
    for outputs in (["foreground"], ["displacement", "affinity", "boundary"]):
        part = onnx.load_from_string(with_outputs(whole, outputs))
        onnx.checker.check_model(part)
        assert [o.name for o in part.graph.output] == [
            o.name for o in complete.graph.output if o.name in outputs
        ]
        assert len(part.graph.node) < len(complete.graph.node)
        read = {name for n in part.graph.node for name in n.input}
        assert all(set(n.output) & (read | set(outputs)) for n in part.graph.node), (
            "every remaining node has a used output"
        )
        assert part.metadata_props == complete.metadata_props


def test_remaining_outputs_are_equal():
    session = open_instance_session()
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (2, session.view_px, session.view_px, 3), np.uint8)
    masks = (rng.random((2, session.view_px, session.view_px)) < 0.5).astype(np.uint8)
    whole = onnxruntime.InferenceSession(str(DEFAULT_INSTANCE_MODEL), providers=["CPUExecutionProvider"])
    names = ["displacement", "affinity", "boundary", "foreground"]
    outputs = dict(zip(names, whole.run(names, {"views": views, "masks": masks}), strict=True))
    session.prepare(maps=True, outlines=True)
    alone, together = session.infer(views, masks), session.infer(views, masks, foreground=True)
    assert alone.foreground is None
    for maps in (alone, together):
        for name in names[:3]:
            np.testing.assert_allclose(getattr(maps, name), outputs[name], atol=1e-4)
    np.testing.assert_allclose(together.foreground, outputs["foreground"][:, 0], atol=1e-4)
    np.testing.assert_allclose(session.foreground(views, masks), outputs["foreground"][:, 0], atol=1e-4)


def test_models_with_weights_in_another_file_are_not_changed(tmp_path):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "apart.onnx"
    onnx.save(
        onnx.load(DEFAULT_INSTANCE_MODEL),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=1024,
    )
    assert with_outputs(path.read_bytes(), ["foreground"]) is None
    views, masks = np.zeros((1, 192, 192, 3), np.uint8), np.ones((1, 192, 192), np.uint8)
    np.testing.assert_allclose(
        open_instance_session(path).foreground(views, masks),
        open_instance_session().foreground(views, masks),
        atol=1e-4,
    )


def test_batches_of_many_views_equal_single_views():
    session = open_instance_session()
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (11, session.view_px, session.view_px, 3), np.uint8)
    masks = (rng.random((11, session.view_px, session.view_px)) < 0.5).astype(np.uint8)
    together = session.infer(views, masks, foreground=True)
    for k in (0, 7, 8, 10):
        one = session.infer(views[k : k + 1], masks[k : k + 1], foreground=True)
        for name in ("displacement", "affinity", "boundary", "foreground"):
            np.testing.assert_allclose(getattr(together, name)[k], getattr(one, name)[0], atol=1e-4)
