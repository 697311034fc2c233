"""How knowledge-concentration's cases are computed through the public interface."""

import torch
from reading import array, said

from offprint.methods.training.knowledge_concentration import (
    SelfPacedScaling,
    multi_teacher_targets,
    summed_sigmoid_loss,
)


def targets(record):
    given, expected = record["inputs"], record["expected"]
    student, teachers = (
        array(record, given["student_logits"]),
        [array(record, spec) for spec in given["teacher_logits"]],
    )
    vertical, k = torch.tensor(given["vertical"]), said(record, "top K=#")
    found = multi_teacher_targets(teachers, vertical, k)
    yield "targets", found, expected["targets"], 1e-6
    yield "loss", summed_sigmoid_loss(student, found), expected["loss"], 1e-6
    starts = torch.tensor([0, *[t.shape[1] for t in teachers]]).cumsum(0)[:-1]
    first = torch.nn.functional.one_hot(starts[vertical], student.shape[1])
    yield "teacher_loss", summed_sigmoid_loss(student, first), expected["teacher_loss"], 1e-6


def scaling(record):
    given, expected = record["inputs"], record["expected"]
    logits, target = array(record, given["logits"]), array(record, given["target_array"]) > 0
    sizes = list(said(record, "verticals of #, #, # classes"))
    vertical = SelfPacedScaling(sizes, noise=0.0).to(logits.dtype)
    yield "gamma_init", vertical.gamma.detach(), expected["gamma_init"], 1e-6
    out = vertical(logits)
    yield "vertical_level", out.detach(), expected["vertical_level"], 1e-6
    summed_sigmoid_loss(out, target).backward()
    yield "gamma_grad", vertical.gamma.grad, expected["gamma_grad"], 1e-6
    by_class = SelfPacedScaling(sizes, "class", said(record, "one gamma per class, here #"), noise=0.0).to(logits.dtype)
    yield "class_level", by_class(logits).detach(), expected["class_level"], 1e-6


CASES = {"case_multi_teacher_targets": targets, "case_self_paced_scaling": scaling}
WORDS = {
    "case_multi_teacher_targets": {
        "3 verticals of 4, 3, 5 classes, batch 3": "the shapes of the arrays",
        "vertical [0, 1, 2][b]": "inputs.vertical",
        "every other entry of the 12-way target (other verticals included) is 0": "the definition of the target",
    },
    "case_self_paced_scaling": {
        "x/||x||_2": "the definition of the scaling",
        "array2 > 0": "how the target is made",
    },
}
