"""The benchmark for accelerators compares with the CPU, and fails where they differ."""

from released_files import toy_tensors

from benchmarks import gpu

VARIANT = toy_tensors()[1]


def test_a_device_agrees_with_itself():
    for name in ("mmdit", "vae"):
        assert gpu.parity(name, VARIANT) == {"network": name, "float32": 0.0, "compute_type": 0.0}


def test_a_network_that_is_off_ends_with_an_error(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "TRAININGS", {})
    for error, code in ((2e-4, 1), (5e-5, 0)):
        row = {"network": "vae", "float32": error, "compute_type": 0.01}
        monkeypatch.setattr(gpu, "parity", lambda *_, row=row: row)
        assert gpu.main(["--networks=vae"]) == code
    assert "vae   float32 0.0002   compute_type 0.01" in capsys.readouterr().out
