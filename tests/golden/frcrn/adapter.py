"""How frcrn's records and case are computed through the public interface."""

import torch
from reading import array, said

from offprint.models.signals.frcrn import FRCRNLoss, Spectrum, si_snr


def whole(model, record, wave):
    edge = said(record, "first and last # samples")
    found = model(wave)
    return {"spec": found.spec, "wav": found.wave[:, edge:-edge], "mask": found.mask}


def losses(record):
    v = {k: array(record, spec) for k, spec in record["inputs"].items()}
    expected = record["expected"]
    clean, noisy = v["a"], v["a"] + said(record, "noisy = a + # b") * v["b"]
    estimate = v["a"] + said(record, "estimate = a + # c") * v["c"]
    mask = said(record, "mask = # tanh(d)") * torch.tanh(v["d"])
    found = FRCRNLoss()(estimate, mask, clean, noisy)
    yield "loss", found.loss, expected["loss"], 1e-5
    yield "mask_loss", found.mask, expected["mask_loss"], 1e-5
    yield "si_snr_loss", found.si_snr, expected["si_snr_loss"], 1e-5
    yield "si_snr_per_item", si_snr(estimate, clean), expected["si_snr_per_item"], 1e-5
    transform = Spectrum(320).to(v["a"].dtype)
    spec = transform(noisy)
    low, high, first, second = said(record, "bins #,# of frames #,#")
    pairs = spec.unflatten(1, (2, -1))[0]
    yield "stft_samples", pairs[:, [low, high]][:, :, [first, second]].permute(2, 1, 0), expected["stft_samples"], 1e-5
    back = transform.inverse(spec)
    start = said(record, "samples #..N")
    end = back.shape[1] - said(record, "N-#")
    worst = (back - noisy[:, : back.shape[1]])[:, start:end].abs().max()
    yield "istft_max_error", bool(worst < expected["istft_max_error_below"]), True, 0
    yield "istft_length", back.shape[1], expected["istft_length"], 0


CALLS = {
    "custom: model(wave): enhanced spectrum, enhanced wave without its first and last 640 samples, and the complex mask, all laid "
    "out as in the notes": whole
}
CASES = {"losses": losses}
WORDS = {
    "frcrn_16k": {
        "input (B, samples) at 16 kHz": "what the samples are; the layers do not know it",
        "spec (B, 2*321, T)": "the bins of a transform of 640",
        "mask (B, 2*321, T) = tanh(u1)+tanh(u2)": "the same, and the formula of the paper",
        "(encoder0 and encoders.0 ...)": "names",
        "(encoders.0, decoders.0, fsmn_enc.0, fsmn_dec.0, se_layers_enc.0, se_layers_dec.0)": "names",
        "(49 frames)": "of the count of multiply-adds",
    }
}
