"""How topiq's records and cases are computed through the public interface."""

import torch
from reading import array

from offprint.models.signals.topiq import emd_loss, nin_loss, opinion_score, plcc_loss, rank_loss
from offprint.tasks.quality import correlations


def losses(record):
    v, expected = {k: array(record, spec) for k, spec in record["inputs"].items()}, record["expected"]
    pred, target = v["pred"], v["target"]
    got = {
        "nin_loss": nin_loss(pred, target),
        "plcc_loss": plcc_loss(pred, target),
        "rank_loss": rank_loss(pred, target),
        "mse_plus_nin": torch.nn.functional.mse_loss(pred, target) + nin_loss(pred, target),
        "nin_loss_single": nin_loss(pred[:1], target[:1]),
        **correlations(pred, target),
    }
    said, truth = (v[f"{k}_dist_logits"].softmax(-1) for k in ("pred", "target"))
    got |= {"emd_loss": emd_loss(said, truth), "dist_to_mos": opinion_score(said)}
    for name, value in expected.items():
        yield name, got[name], value, 1e-6


def _frozen(record):
    """The scales of the backbone's batch norms, which never train, and the decoders' own self-attention, which nobody uses."""
    names = {name for name, _ in record["state"]}
    norms = [n for n in names if n.startswith("semantic_model.") and n.rsplit(".", 1)[0] + ".running_mean" in names]
    sizes = {name: torch.Size(shape).numel() for name, shape in record["state"]}
    kept = [n for n in norms if n.endswith((".weight", ".bias"))]
    unused = [n for n in names if n.startswith("attn_blks.") and ".self_attn." in n]
    return sum(sizes[n] for n in (*kept, *unused))


def trained(record):
    return record["parameters"] - _frozen(record)


CALLS = {
    "custom: the score and the distribution over 1..10, of one forward": lambda model, record, x: model.distribution(x),
}
CASES = {"losses": losses}
PARAMETERS = {name: trained for name in ("topiq_nr_resnet50", "topiq_fr_resnet50", "topiq_iaa_resnet50")}
WORDS = {
    "losses": {
        "pred and target are (n,1)": "the shape of the arrays",
        "(scores 1..10)": "the definition of the opinion score, which the library holds",
    },
    "topiq_iaa_resnet50": {
        "distribution over scores 1..10": "the number of outputs of the variant",
        "shorter side is 384": "the size that the variant is evaluated at",
    },
}
