"""Fits by PyTorch on a device give what numpy gives; what is not there is said in words."""

from __future__ import annotations

import builtins

import numpy as np
import problems as pb
import pytest
from numpy.testing import assert_allclose

from flashmm import MultiLMM
from flashmm.arrays import devices
from flashmm.exceptions import InputError

CASES = [
    ("intercept", "spectral", "unconstrained"),
    ("crossed", "bordered", "psd"),
    ("correlated", "general", "psd"),
]


def model(kind, m=6):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(pb.KINDS.index(kind))
    return MultiLMM(problem.stats(problem.simulate(problem.theta(rng), m, rng)))


@pytest.mark.filterwarnings("ignore::flashmm.exceptions.ConvergenceWarning")  # verdicts agree
@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize(("kind", "engine", "space"), CASES)
def test_a_fit_on_a_device_is_the_fit(kind, engine, space, method):
    torch = pytest.importorskip("torch")
    fitted = model(kind)
    options = {"method": method, "engine": engine, "parameter_space": space}
    here = fitted.fit(**options)
    for device in ("cpu", torch.device("cpu")):
        there = fitted.fit(**options, device=device)
        assert there.ds.attrs["engine"] == engine
        assert there.status.tolist() == here.status.tolist()
        assert_allclose(there.ds["loglik"], here.ds["loglik"], rtol=1e-10)
        for name, se in {"theta": "se_theta", "beta": "se_beta"}.items():
            unit = here.ds[se].to_numpy()
            assert_allclose(there.ds[name] / unit, here.ds[name] / unit, atol=1e-6)
            assert_allclose(there.ds[se], unit, rtol=1e-6)
        # and what is computed on request needs no device
        assert_allclose(there.blup(), here.blup(), atol=1e-6)


def test_pytorch_that_is_absent_is_named(monkeypatch):
    original = builtins.__import__

    def without_torch(name, *rest, **more):
        if name == "torch":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(InputError, match=r"device='cuda' needs PyTorch.*multilmm\[torch\]"):
        model("intercept").fit(device="cuda")


@pytest.mark.parametrize("device", ["nowhere", "cuda:97", "cpu:0:0"])
def test_a_device_that_is_absent_is_named_and_others_are_offered(device):
    pytest.importorskip("torch")
    with pytest.raises(InputError, match=f"no device '{device}' here; it has 'cpu'"):
        model("intercept").fit(device=device)


@pytest.mark.parametrize("device", [3.5, ["cuda"]])
def test_a_device_has_a_name(device):
    pytest.importorskip("torch")
    with pytest.raises(InputError, match="`device` must be a name such as 'cuda'"):
        model("intercept").fit(device=device)


def test_a_device_without_float64_is_refused(monkeypatch):
    torch = pytest.importorskip("torch")

    class Single:
        """What an array on such a device does."""

        def to(self, dtype):
            raise TypeError(f"no {dtype}")

    monkeypatch.setattr(torch, "zeros", lambda *_, **__: Single())
    with pytest.raises(InputError, match=r"'mps' has no float64 numbers.*Use one of 'cpu'"):
        devices.example_on("mps")
