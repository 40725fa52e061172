"""benchmarks/gpu.py compares the device with the CPU, and fails if they differ."""

from released_files import toy_tensors

from benchmarks import gpu

VARIANT = toy_tensors()[1]


def test_parity_of_a_device_with_itself_is_exact():
    for name in ("mmdit", "vae"):
        assert gpu.parity(name, VARIANT) == {"network": name, "float32": 0.0, "compute_type": 0.0}


def test_exit_code_is_1_if_a_network_exceeds_the_limit(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "TRAININGS", {})
    for error, code in ((2e-4, 1), (5e-5, 0)):
        row = {"network": "vae", "float32": error, "compute_type": 0.01}
        monkeypatch.setattr(gpu, "parity", lambda *_, row=row: row)
        assert gpu.main(["--networks=vae"]) == code
    assert "vae   float32 0.0002   compute_type 0.01" in capsys.readouterr().out
