from released_files import toy_tensors, write_vocabulary
from torch_files import write_state

from msg_jax import doctor
from msg_jax.convert import bundle
from msg_jax.convert.bundle import VARIANTS, Bundle, Network, Released, Variant
from msg_jax.infra import memory


def test_versions_name_missing_packages(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("jax", "no-such-package"))
    found = dict(doctor.versions())
    assert found["jax"][0].isdigit() and found["no-such-package"] == "MISSING"


def test_the_size_of_a_file_decides_its_state(tmp_path):
    file = Released("x.pth", 1_000_000)
    path = tmp_path / "x.pth"
    assert doctor.state_of(None, file) == "missing"
    for size, state in ((960_000, "found"), (500_000, "cut short: 0 MB"), (3_000_000, "another file: 3 MB")):
        path.write_bytes(bytes(size))
        assert doctor.state_of(path, file) == state


def test_the_sum_of_a_file_decides_its_state(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"abc")
    assert doctor.state_of(path, Released("x.pth", 3, "900150983cd24fb0d6963f7d28e17f72")) == "verified"  # RFC 1321
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert doctor.state_of(path, Released("x.pth", 3, sha256=sha256)) == "verified"
    path.write_bytes(b"abd")
    assert doctor.state_of(path, Released("x.pth", 3, sha256=sha256)) == "damaged: another SHA-256"
    assert doctor.state_of(path, Released("x.pth", 3, "900150983cd24fb0d6963f7d28e17f72")) == "damaged: another MD5"


def test_memory_of_the_released_stages():
    """Published parameter counts (docs/WEIGHTS.md), without text projections and VAE encoder, which are not loaded."""
    needed = doctor.stage_bytes(VARIANTS["small_16k"])
    weights = {stage: (needed[stage] - doctor.WORKING_BYTES[stage]) / 4 for stage in bundle.STAGES}
    synchformer, image, text = 122_440_704 - 590_592, 632.68e6, 354.03e6
    assert weights["generator"] == 157_283_644
    assert abs(weights["encoders"] - (image + synchformer)) < 1e5
    assert abs(weights["text"] - (text - 1_048_577)) < 1e5
    assert 112_199_473 < weights["codec"] < 112_199_473 + 171_657_218
    assert needed["converting"] == 2 * 3_950_000_000
    assert doctor.stage_bytes(VARIANTS["small_16k"], ("clip",))["converting"] == 2 * 951_000_000


def test_the_report_counts_files_and_memory(tmp_path, capsys, monkeypatch):
    tensors, variant = toy_tensors()
    networks = {}
    for kind, network in variant.networks.items():
        path = write_state(tmp_path / network.file.name, tensors[network.file.name])
        networks[kind] = Network(Released(path.name, path.stat().st_size), network.config)
    write_vocabulary(tmp_path)
    monkeypatch.setattr(bundle, "VARIANTS", {"toy": Variant(variant.clip, networks)})

    def printed():
        assert doctor.main([f"--weights={tmp_path}"]) == 0
        return capsys.readouterr().out

    monkeypatch.setattr(memory, "available_bytes", lambda: 10**10)
    report = printed()
    assert "vjepa2-vitl-fpc64-256/model.safetensors  1.3 GB     missing  vjepa2" in report
    assert "10.0 GB free" in report and report.count("  found\n") == 5
    assert report.splitlines()[-1].split()[-2:] == ["enough", "ready"] and "done" not in report
    files = Bundle(tmp_path, bundle.VARIANTS["toy"])
    for kind in files.paths:
        files.convert(kind)
    assert printed().splitlines()[-1].split()[1] == "done"

    snapshot = tmp_path / "home" / "hub" / "models--hkchengrex--MMAudio" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert doctor.main([]) == 0 and f"Released files in {snapshot}" in (report := capsys.readouterr().out)
    assert report.splitlines()[-1].split()[-1] == "ready"
    monkeypatch.delenv("HF_HOME")

    (tmp_path / "v1-16.pth").unlink()
    (tmp_path / "best_netG.pt").write_bytes(b"half")
    monkeypatch.setattr(memory, "available_bytes", lambda: 1_300_000_000)
    report = printed()
    # the largest stage is the codec with 1.1 GB of work and a toy's 1 MB of weights; the process takes 0.7 GB
    assert "501 MB too little" in report and "2 files missing" in report
    assert "cut short: 0 MB" in report
