"""How forward-gnn's records are called through the public interface."""

import golden
import torch
from reading import array, precision, said

import offprint
from offprint.methods.training._forward_steps import PROCEDURES, Links, Nodes, forward_forward_loss, roc_auc
from offprint.models.graphs.forward_gnn import ForwardGNN


def _layers(model, record, x):
    return model(x, torch.tensor(record["edge_index"]))


STACKS = "custom: the output of every layer, one after the other, of model(x, edge_index) with the record's edge_index and no virtual nodes"
CALLS = {STACKS: _layers}


def _model(record, method):
    given = record["inputs"]
    if not given.get("alternating_update", True):
        raise ValueError("the layers of our top-down forms are updated in turn only")
    options = {name: given[name] for name in ("theta", "temperature") if name in given}
    sizes = given["x"]["shape"][1], given["hidden"], given["layers"], given.get("classes", 2)
    model = ForwardGNN(*sizes, operator=given["gnn"].lower(), method=method, **options).to(precision(record))
    state = {name: torch.from_numpy(golden.tensor(name, shape, given["gain"])) for name, shape in given["state"]}
    report = offprint.load_weights(model, state)
    assert report.loaded == len(state)
    if "virtual" in given:
        model.virtual.copy_(array(record, given["virtual"]))
    return model


def _train(model, problem, record):
    """Every step of every layer, in order."""
    given, (lr, decay) = record["inputs"], said(record, "learning rate #, weight decay #;")
    procedure = PROCEDURES[model.method](model, problem, lr=lr, weight_decay=decay)
    steps = []
    for stage in range(procedure.stages):
        procedure.open(stage)
        for _ in range(given["epochs"]):
            steps += procedure.step(stage)
        procedure.close(stage)
    return steps


def _index(steps, norms):
    """The layers of the steps as their indices in the authors' list."""
    return [2 * s.layer + 1 if norms else s.layer for s in steps]


def _nodes(record, method):
    given, expected = record["inputs"], record["expected"]
    x, edges, y = array(record, given["x"]), torch.tensor(given["edge_index"]), torch.tensor(given["y"])
    train, val, test = (torch.tensor(given[k]) for k in ("train", "val", "test"))
    wrong = torch.tensor(given["negative_classes"]) if "negative_classes" in given else None
    model = _model(record, method)
    # no early stopping, so that the validation nodes are not needed; closing a stage with them is checked all the same
    problem = Nodes(x, edges, y, train, val, wrong)
    steps = _train(model, problem, record)
    forward_forward = method.startswith("ff_")
    yield "layers", _index(steps, forward_forward), [s[0] for s in expected["steps"]], 0
    if forward_forward:
        got = [[float(part.mean()) for part in s.logits] for s in steps]
    else:
        got = [s.loss for s in steps]
    yield "steps", got, [s[1] for s in expected["steps"]], 2e-4
    told = torch.cat([train, val]) if forward_forward else train
    scores = model.contributions(x, edges, test, told, y[told]).sum(0)
    yield "scores", scores, expected["goodness" if forward_forward else "summed_probabilities"], 2e-4
    yield "correct", int((scores.argmax(1) == y[test]).sum()), expected["correct"], 0


def _links(record, method):
    given, expected = record["inputs"], record["expected"]
    x, edges = array(record, given["x"]), torch.tensor(given["edge_index"])
    pairs = {
        k: torch.tensor(given[k]).t() for k in ("train_positive", "train_negative", "test_positive", "test_negative")
    }
    model = _model(record, method)
    test = torch.cat([pairs["test_positive"], pairs["test_negative"]], 1)
    label = torch.cat([torch.ones(pairs["test_positive"].shape[1]), torch.zeros(pairs["test_negative"].shape[1])])
    problem = Links(x, edges, pairs["train_positive"], pairs["train_negative"], test, label)
    steps = _train(model, problem, record)
    yield "layers", _index(steps, model.form.norms), [s[0] for s in expected["steps"]], 0
    if method == "link_ff":
        got = [[float(part.mean()) for part in s.logits] for s in steps]
    else:  # mean of exp(loss) over positives, one minus that over negatives
        got = [[float((1 + (-s.logits[0]).exp()).mean()), float(-s.logits[1].exp().mean())] for s in steps]
    yield "steps", got, [s[1] for s in expected["steps"]], 2e-4
    scores = model.contributions(x, edges, test).mean(0)
    yield "scores", scores, expected["scores"], 2e-4
    yield "auc", roc_auc(scores, label), expected["auc"], 1e-9


def ff_loss(record):
    given, expected = record["inputs"], record["expected"]
    outputs = array(record, given["outputs"]).requires_grad_()
    loss = forward_forward_loss(outputs, given["theta"], torch.tensor(given["target"]))
    loss.backward()
    yield "loss", loss, expected["loss"], 1e-5
    yield "gradient", outputs.grad, expected["gradient"], 1e-5
    positive = forward_forward_loss(outputs, given["theta"], 1.0), forward_forward_loss(outputs, given["theta"], 0.0)
    yield "mean_logit", positive[1] - positive[0], expected["mean_logit"], 1e-5  # softplus(g) - softplus(-g) = g


CASES = {
    "ff_loss": ff_loss,
    "ff_label_appending": lambda record: _nodes(record, "ff_la"),
    "ff_virtual_nodes": lambda record: _nodes(record, "ff_vn"),
    "sf": lambda record: _nodes(record, "sf"),
    "sf_top2loss": lambda record: _nodes(record, "sf_top2loss"),
    "sf_top2input": lambda record: _nodes(record, "sf_top2input"),
    "link_fl": lambda record: _links(record, "link_fl"),
    "link_ff": lambda record: _links(record, "link_ff"),
    "link_fl_topdown": lambda record: _links(record, "link_fl_topdown"),
}
_STEPS = {"steps 2..9": "the rule of the library"}
_UNSEEN = {"inputs.val": "validation nodes are not told in these forms, and nothing stops early"}
WORDS = {
    "sf": _UNSEEN,
    "sf_top2loss": _UNSEEN,
    "sf_top2input": {
        "layers 0,2,.. updated before 1,3,..": "the order of the library",
        "of 10": "the rule of the library",
        **_STEPS,
        **_UNSEEN,
    },
    "link_fl_topdown": _STEPS,
    "ff_virtual_nodes": {"n..n+C-1": "how the library numbers virtual nodes"},
    "link_fl": {
        "1 - exp(loss)": "the rule of the adapter",
        "which score 0": "the rule of the library",
        "inputs.theta": "this form has no threshold",
    },
    "link_ff": {"1 - exp(loss)": "the rule of the other form", "which score 0": "the rule of the library"},
}
