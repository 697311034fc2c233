"""FRCRN: the transform, the mask, the two forms, the files its users have, and sounds of every kind."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import offprint
from offprint.data.sounds import Resampler, header, noisy_speech, read, resample
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.models.checkpoint import save_weights
from offprint.models.deploy import deploy
from offprint.models.signals.frcrn import FRCRN, FRCRNLoss, Spectrum, UNet, cirm, masked, si_snr
from offprint.tasks import contract
from offprint.tasks.denoising import Stream, denoise_file, enhance, gain_to_level
from offprint.tasks.enhancement import HalveRate, SpeechEnhancement, library_si_snr, measures, mixture

sf = pytest.importorskip("soundfile")
TINY = {"n_unets": 1, "width": 8}


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = FRCRN(**TINY)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    return str(save_weights(tiny, tmp_path_factory.mktemp("w") / "tiny.safetensors"))


def _pairs():
    held = noisy_speech()
    for n in ("audio_1", "audio_2"):
        yield tuple(torch.from_numpy(held[f"pairs/{k}/{n}"])[None] for k in ("noisy", "clean"))


# -- transform, mask, loss


@pytest.mark.parametrize("hop", [320, 160, 200])
def test_convolution_is_the_transform(hop):
    wave, ours = torch.randn(2, 4000, dtype=torch.float64), Spectrum(hop).double()
    spec = ours(wave)
    window = torch.hann_window(640, dtype=torch.float64).sqrt()
    library = torch.stft(wave, 640, hop, window=window, center=False, return_complex=True)
    assert spec.shape[2] == (4000 - 640) // hop + 1
    torch.testing.assert_close(spec, torch.cat([library.real, library.imag], 1), atol=1e-10, rtol=0)
    back = ours.inverse(spec)
    assert back.shape[1] == (spec.shape[2] - 1) * hop + 640
    torch.testing.assert_close(back[:, 640:-640], wave[:, 640 : back.shape[1] - 640], atol=1e-6, rtol=0)


def test_tables_in_double_are_not_rounded():
    once, twice = Spectrum(320).double(), Spectrum(320).half().double()
    assert torch.equal(once.analysis, twice.analysis)
    assert (once.analysis - once.analysis.float().double()).abs().max() > 0


def test_ideal_masks_give_the_figures_of_the_sheet():
    """Without bound, with it, and with the paper's rule for outliers (dB, measured with the authors' code)."""
    transform, found = Spectrum(320), []
    for noisy, clean in _pairs():
        y, s = transform(noisy), transform(clean)
        row = []
        for rule in ({"bound": float("inf")}, {"outlier": None}, {}):
            mask = cirm(s, y, **rule)
            wave = transform.inverse(masked(y.unflatten(1, (2, -1)), mask.unflatten(1, (2, -1))).flatten(1, 2))[0]
            row.append(library_si_snr(wave[640:-640], clean[0, 640 : len(wave) - 640]))
        found.append(row)
    for got, told in zip(found, ((87.7, 39.2, 34.1), (87.6, 43.1, 37.7)), strict=True):
        assert got[1:] == pytest.approx(told[1:], abs=0.35)
        assert got[0] > 80


def test_outliers_become_one_and_not_the_bound():
    clean, noisy = torch.tensor([[[3.0], [0.0]]]), torch.tensor([[[1.0], [0.0]]])
    assert cirm(clean, noisy)[0, 0, 0] == 1
    assert cirm(-clean, noisy)[0, 0, 0] == -1
    assert cirm(clean, noisy, outlier=None)[0, 0, 0] == 2
    assert cirm(1.9 * noisy, noisy)[0, 0, 0] == pytest.approx(1.9)


def test_si_snr_of_the_loss_is_the_library_s():
    for noisy, clean in _pairs():
        assert float(si_snr(noisy, clean)) == pytest.approx(library_si_snr(noisy[0], clean[0]), abs=0.01)


def test_loss_refuses_a_wave_that_lost_its_tail(tiny):
    wave = torch.randn(1, 4100)
    out = tiny(wave)
    with pytest.raises(OffprintError, match=r"640 \+ 320 \* m"):
        FRCRNLoss()(out.wave, out.mask, wave, wave)


# -- network


def test_forms_are_equal_and_stay_so(tiny):
    x = torch.randn(2, 3840)
    before, merged = tiny(x), deploy(tiny, x)
    torch.testing.assert_close(merged(x).mask, before.mask, atol=1e-4, rtol=0)
    again = copy.deepcopy(tiny)
    again.merge()
    again.merge()
    assert torch.equal(again(x).mask, again(x).mask) and not any("bn_re" in k for k in again.state_dict())
    with pytest.raises(OffprintError, match="training mode"):
        copy.deepcopy(tiny).train().merge()


def test_every_item_of_a_batch_comes_back_as_alone(tiny):
    x = torch.randn(3, 3200)
    torch.testing.assert_close(tiny(x).mask[1:2], tiny(x[1:2]).mask, atol=1e-5, rtol=0)


def test_frequency_memory_looks_down_only():
    """A change in a bin moves that bin and those above."""
    from offprint.models.signals.frcrn import ComplexFSMN

    memory, x = ComplexFSMN(8).eval(), torch.randn(2, 8, 30, 3)
    y = x.clone()
    y[:, :, 10] += 1
    moved = (memory(x) - memory(y)).abs().amax((0, 1, 3))
    assert (moved[:10] == 0).all() and (moved[10:30] > 0).all()


def test_released_counts_and_unused_blocks():
    net = UNet()
    unused = (net.fsmn_enc[0], net.fsmn_dec[6], net.se_layers_enc[6], net.se_layers_dec[5])
    assert 2 * sum(p.numel() for m in unused for p in m.parameters()) == 317_568
    assert sum(p.numel() for p in net.parameters()) == 6_570_922


@pytest.mark.parametrize("form", ["both", "single", "list"])
def test_a_file_that_holds_every_block_twice(tiny, tmp_path, form):
    state = {f"model.{k}": v for k, v in tiny.state_dict().items()}
    lists = {"encoders": "encoder", "decoders": "decoder", "fsmn_enc": "fsmn_enc", "fsmn_dec": "fsmn_dec",
             "se_layers_enc": "se_layer_enc", "se_layers_dec": "se_layer_dec"}  # fmt: skip
    import re

    twins = {k: re.sub(r"unet\.(\w+)\.(\d+)\.", lambda m: f"unet.{lists.get(m[1], m[1])}{m[2]}.", k)
             if re.search(r"unet\.(\w+)\.(\d+)\.", k) and re.search(r"unet\.(\w+)\.", k)[1] in lists else k for k in state}  # fmt: skip
    single = {twins[k]: v for k, v in state.items()}
    file = {"both": {**state, **single}, "single": single, "list": state}[form]
    file = {**file, "model.stft.weight": torch.zeros(642, 1, 640), "model.istft.window": torch.zeros(1, 640, 1)}
    torch.save({"model": file}, tmp_path / "released.pt")
    ours = FRCRN(**TINY)
    report = offprint.load_weights(ours, tmp_path / "released.pt")
    assert report.fresh == [] and report.dialect == "authors"
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in tiny.state_dict().items())
    if form == "both":
        broken = next(k for k in single if "encoder0" in k and single[k].is_floating_point())
        torch.save({"model": {**file, broken: file[broken] + 1}}, tmp_path / "broken.pt")
        with pytest.raises(CheckpointError, match="one block and differ"):
            offprint.load_weights(FRCRN(**TINY), tmp_path / "broken.pt")


def test_what_cannot_be_built_or_heard(tiny):
    for given, said in (({"n_fft": 512}, "640 alone"), ({"n_unets": 3}, "choose 1"), ({"width": 20}, "multiple of 8"),
                        ({"hop_length": 400}, "overlap")):  # fmt: skip
        with pytest.raises(OffprintError, match=said):
            FRCRN(**given)
    with pytest.raises(OffprintError, match="N >= 640"):
        tiny(torch.zeros(1, 600))
    with pytest.raises(OffprintError, match="321"):
        tiny.unet(torch.zeros(1, 1, 257, 4, 2))


# -- sounds in memory


@pytest.mark.parametrize("n", [1, 639, 16_000, 16_001, 27_999, 28_000, 30_123])
def test_the_length_stays(tiny, n):
    wave = np.random.default_rng(0).standard_normal(n).astype(np.float32) * 0.1
    done = enhance(tiny, wave)
    assert isinstance(done, np.ndarray) and done.dtype == np.float32 and done.shape == wave.shape
    assert np.isfinite(done).all()


def test_same_kind_back_and_rows_by_themselves(tiny):
    wave = 0.1 * torch.randn(2, 9_000)
    both = enhance(tiny, wave, 8_000)
    assert isinstance(both, torch.Tensor) and both.shape == wave.shape
    torch.testing.assert_close(both[1], enhance(tiny, wave[1], 8_000), atol=1e-5, rtol=0)


def test_loudness_goes_and_comes_back(tiny):
    """Ten times as loud in, ten times as loud out, and not so where it is taken as given."""
    wave = 0.05 * torch.randn(8_000)
    torch.testing.assert_close(enhance(tiny, 10 * wave), 10 * enhance(tiny, wave), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(
        enhance(tiny, 10 * wave, loudness="given"), 10 * enhance(tiny, wave, loudness="given"), rtol=0.01
    )
    brought = wave * gain_to_level(wave)
    power = brought**2
    assert 10 * torch.log10(power[power > power.mean()].mean()) == pytest.approx(-25, abs=0.1)


def test_silence_stays_silence(tiny):
    assert (enhance(tiny, torch.zeros(5_000)) == 0).all()


def test_what_is_no_sound_is_refused(tiny):
    for wave, said in ((np.zeros(0, np.float32), "no samples"), (np.array([0.0, np.nan]), "no numbers"),
                       (np.zeros((1, 2, 3)), "expected a wave"), (np.zeros(9, np.int16), "floats")):  # fmt: skip
        with pytest.raises(OffprintError, match=said):
            enhance(tiny, wave)
    with pytest.raises(OffprintError, match="loudness"):
        enhance(tiny, np.zeros(9), loudness="loud")


def test_chunks_give_what_the_whole_gives(tiny):
    torch.manual_seed(1)
    wave = 0.1 * torch.randn(2, 40_321)
    gain = gain_to_level(wave)
    whole = enhance(tiny, wave, windows=True, batch=2)
    stream, out, given, late = Stream(tiny, 2, gain), [], 0, 0
    for chunk in wave.split([1, 700, 15_299, 5_000, 16_000, 3_321], 1):
        given += chunk.shape[1]
        out.append(stream.feed(chunk))
        late = max(late, given - sum(o.shape[1] for o in out))
    assert stream.delay == 14_000 and late < stream.window
    out.append(stream.finish())
    together = torch.cat(out, 1)
    assert together.shape == wave.shape
    torch.testing.assert_close(together, whole, atol=1e-5, rtol=0)
    live = Stream(tiny, 2, None)
    assert torch.isfinite(torch.cat([live.feed(wave), live.finish()], 1)).all()


def test_a_sample_is_late_by_no_more_than_the_delay(tiny):
    stream, n = Stream(tiny), 0
    for i in range(1, 400):
        n += stream.feed(torch.zeros(1, 100)).shape[1]
        late = i * 100 - n  # the oldest sample that is still held
        assert late < (stream.delay if n else stream.window) + 100
    assert n == 14_000 + 12_000  # windows are full at 16,000 and at 28,000; the next at 40,000


def test_resampling_in_blocks_is_that_of_the_whole():
    wave = np.random.default_rng(0).standard_normal((2, 44_100)).astype(np.float32)
    there = Resampler(44_100, 16_000, 2)
    parts = [there(wave[:, i : i + 5_000]) for i in range(0, 44_100, 5_000)] + [there(wave[:, :0], last=True)]
    assert np.abs(np.concatenate(parts, 1) - resample(wave, 44_100, 16_000)).max() < 1e-5


# -- files


KINDS = [("a.wav", 8_000, 1, "PCM_16"), ("a.wav", 44_100, 2, "PCM_24"), ("a.wav", 48_000, 6, "FLOAT"), ("a.flac", 192_000, 1, "PCM_24"),
         ("a.ogg", 22_050, 2, "VORBIS")]  # fmt: skip


@pytest.mark.parametrize(("name", "rate", "channels", "depth"), KINDS)
def test_a_file_of_any_kind(tiny, tmp_path, name, rate, channels, depth):
    wave = 0.1 * np.random.default_rng(0).standard_normal((rate // 4 + 7, channels))
    sf.write(tmp_path / name, wave, rate, depth)
    before = header(tmp_path / name)
    done = denoise_file(tiny, tmp_path / name, tmp_path / "out" / name)
    after = header(done.file)
    assert (after.rate, after.channels, after.frames, after.subtype) == (rate, channels, before.frames, depth)
    assert done.real_time_factor > 0 and any("above" in n for n in done.notes) == (rate > 16_000)


def test_a_stream_of_a_file_is_its_windows(tiny, tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(35_000).astype(np.float32)
    sf.write(tmp_path / "a.wav", wave, 16_000, "FLOAT")
    denoise_file(tiny, tmp_path / "a.wav", tmp_path / "b.wav", stream=True)
    assert np.abs(read(tmp_path / "b.wav")[0][0] - enhance(tiny, wave, windows=True)).max() < 1e-5


def test_clipping_is_said(tiny, tmp_path):
    loud = np.sign(np.sin(np.arange(16_000) / 20)).astype(np.float32)
    sf.write(tmp_path / "a.wav", loud, 16_000, "PCM_16")

    class Louder(torch.nn.Module):
        sample_rate, hop_length = 16_000, 320

        def __init__(self):
            super().__init__()
            self.unet = tiny.unet

        def forward(self, wave):
            return tiny(wave)._replace(wave=2 * wave)

    notes = " ".join(denoise_file(Louder().eval(), tmp_path / "a.wav", tmp_path / "b.wav").notes)
    assert "clipped before it came here" in notes and "beyond full scale" in notes


def test_memory_does_not_grow_with_the_file(tmp_path):
    """What is held while a file is streamed: the same for 4 s and for 40 s."""
    import tracemalloc

    class Nothing(torch.nn.Module):
        sample_rate, hop_length = 16_000, 320

        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def forward(self, wave):
            return type("Out", (), {"wave": wave * self.one})

    peaks = []
    for seconds in (40, 400):
        sf.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(seconds * 8_000), 8_000, "PCM_16")
        tracemalloc.start()
        denoise_file(Nothing().eval(), tmp_path / "a.wav", tmp_path / "b.wav", stream=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert np.abs(read(tmp_path / "a.wav")[0][:, 9000:90000] - read(tmp_path / "b.wav")[0][:, 9000:90000]).max() < 0.1


def test_the_verb_on_a_folder_with_broken_files(weights, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    wave = 0.1 * np.random.default_rng(0).standard_normal(8_000).astype(np.float32)
    sf.write(folder / "deep" / "good.wav", wave, 16_000)
    sf.write(folder / "silent.wav", 0 * wave, 16_000)
    sf.write(folder / "empty.wav", wave[:0], 16_000)
    holes = wave.copy()
    holes[4_000] = np.nan
    sf.write(folder / "holes.wav", holes, 16_000, "FLOAT")
    (folder / "text.wav").write_text("no sound")
    from offprint.cli.main import app
    from offprint.models.registry import register

    register(paper="frcrn", kind="signal", task="enhancement", build=FRCRN, variants={"frcrn_tiny_test": TINY}, input_size=None,
             preprocessing={})  # fmt: skip
    call = ["denoise", str(folder), "--out", str(tmp_path / "out"), "-m", "frcrn_tiny_test", "--checkpoint", weights]
    try:
        done = CliRunner().invoke(app, call)
        alone = CliRunner().invoke(app, ["denoise", str(folder / "holes.wav"), *call[2:]])
        over = CliRunner().invoke(app, ["denoise", str(folder), "--out", str(folder), *call[4:]])
    finally:
        from offprint.models import registry

        registry._entries.pop("frcrn_tiny_test")
    assert done.exit_code == 2, done.output
    assert "real-time factor" in done.output and "3 of 5 sounds" in done.output
    for said in ("empty.wav holds no samples", "the first at 0.250 s", "text.wav", "silence alone"):
        assert said in " ".join(done.output.split())
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.wav")) == ["good.wav", "silent.wav"]
    assert not list((tmp_path / "out").rglob("*.part"))
    assert isinstance(alone.exception, DataError) and isinstance(over.exception, DataError)


# -- training


def test_a_mixture_has_its_ratio():
    clean, noise = torch.randn(9_000), 5 * torch.randn(9_000)
    noisy = mixture(clean, noise, 7.0)
    assert float(10 * torch.log10(clean.square().mean() / (noisy - clean).square().mean())) == pytest.approx(
        7, abs=1e-3
    )
    assert torch.equal(mixture(clean, torch.zeros(9_000), 7.0), clean)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    for kind in ("clean", "noise"):
        (root / kind).mkdir()
        for name, wave in [(n, w) for n, w in noisy_speech().items() if n.startswith(kind)][:2]:
            sf.write(root / f"{name}.wav", wave[:20_000], 16_000)
    return root


def _train(folder, out, epochs):
    return contract.train(
        "frcrn_narrow_16k", folder, out, model_options={"width": 8}, progress=False, accelerator="cpu", options={"cuts": 1},
        recipe={"epochs": epochs, "batch_size": 1, "seconds": 0.2},
    )  # fmt: skip


def test_training_goes_on_as_if_it_had_not_stopped(folder, tmp_path):
    whole = _train(folder, tmp_path / "whole", 2).load()
    _train(folder, tmp_path / "parts", 1)
    resumed = _train(folder, tmp_path / "parts", 2).load()
    last = lambda name: torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]  # noqa: E731
    a, b = last("whole"), last("parts")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert set(whole.evaluate(folder)) == {"si_snr", "stoi", "sounds"}
    assert "noisy" in whole.evaluate(folder).beside
    shown = resumed.predict(folder / "clean")
    assert shown.draw(tmp_path / "a.png").stat().st_size > 1000 and len(shown.waves) == 2


def test_the_rate_is_halved_from_the_best_weights():
    net = torch.nn.Linear(1, 1)

    class Held:
        model = net

    scheduler = type("S", (), {"base_lrs": [1.0]})()
    trainer = type(
        "T", (), {"callback_metrics": {}, "lr_scheduler_configs": [type("C", (), {"scheduler": scheduler})()]}
    )()
    rule = HalveRate(2, "goal")
    for value, weight in ((5.0, 1.0), (4.0, 2.0), (4.5, 3.0)):
        torch.nn.init.constant_(net.weight, weight)
        trainer.callback_metrics["goal"] = torch.tensor(value)
        rule.on_validation_end(trainer, Held)
    assert scheduler.base_lrs == [0.5] and float(net.weight) == 1.0


def test_figures_of_the_pairs():
    noisy, clean = next(_pairs())
    found = measures(noisy[0], clean[0], 16_000)
    assert found["si_snr"] == pytest.approx(-0.23, abs=0.01) and 0 < found["stoi"] < 1


def test_data_that_are_not_there(tmp_path):
    task = SpeechEnhancement()
    with pytest.raises(DataError, match="clean .speech. and noise"):
        task.open(tmp_path)
    with pytest.raises(DataError, match="sample:noisy-speech"):
        task.open("sample:speech")
    assert dataclasses.asdict(task.recipe(offprint.models.registry.entry("frcrn_16k")))["snr"] == (-5.0, 20.0)
