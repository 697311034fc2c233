"""The protocols on graphs and interactions: train by the paper's recipe as often as the paper does, and judge as it does."""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path

import torch

from offprint.data.graphs import load_graph, random_split, split_of
from offprint.errors import DataError, OffprintError
from offprint.models.checkpoint import load_weights
from offprint.models.factory import create_model
from offprint.tasks.protocols import Job, Measured

GRAPHS = {
    "cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed", "amazon_computers": "Amazon_Computers",
    "amazon_photo": "Amazon_Photo", "coauthor_cs": "Coauthor_CS", "coauthor_physics": "Coauthor_Physics",
}  # fmt: skip


def _graph_digest(graph) -> str:
    whole = hashlib.sha256()
    for part in (
        graph.edge_index[:, graph.edge_index[0].mul(graph.num_nodes).add(graph.edge_index[1]).argsort()],
        graph.y,
    ):
        whole.update(part.numpy().tobytes())
    whole.update(graph.x.double().sum(0).numpy().round(3).tobytes())
    return whole.hexdigest()[:16]


def nodes(job: Job) -> Measured:
    """Mean test accuracy (%) over independent runs, each with its own start and, for random splits, its own split."""
    from offprint.tasks.nodes import fit_node_classifier

    asked, spec = job.asked, job.entry
    name = GRAPHS[asked.data]
    graph = load_graph(name, job.source, normalize=True)
    digest = _graph_digest(graph)
    if asked.data in ("cora", "citeseer") and job.source is not None:
        known = _graph_digest(load_graph(name, normalize=True))
        if digest != known:
            raise DataError(f"{job.source} is not {name}: its digest is {digest}, that of {name} {known}")
    recipe = spec.recipe
    for key in ("lr", "weight_decay", "epochs", "patience"):
        if key not in recipe:
            raise OffprintError(f"{job.model} has no recipe for node classification; its variants by data set have")
    if job.checkpoint is not None:
        raise OffprintError("the claim is a mean over runs, each trained anew; leave --checkpoint out")
    runs = min(asked.seeds, job.runs or asked.seeds)
    job.say(f"{name}: {graph.num_nodes:,} nodes, {runs} runs by the recipe of {job.model}")
    job.progress(total=runs)

    def one(seed: int) -> float:
        masks = None
        if asked.split == "random":
            planetoid = asked.data in ("cora", "citeseer", "pubmed")
            masks = random_split(graph.y, seed) if planetoid else split_of(graph, seed)[0]
        torch.manual_seed(seed)
        model = create_model(job.model)
        return fit_node_classifier(
            model, graph, lr=recipe["lr"], weight_decay=recipe["weight_decay"], epochs=recipe["epochs"],
            patience=recipe["patience"], masks=masks,
        ).test_accuracy  # fmt: skip

    values = []
    for seed in range(runs):
        values.append(job.part(f"seed {seed}", lambda s=seed: one(s)))
        job.progress(text=f"run {seed + 1}: {values[-1]:.2f} %")
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    judged = int(graph.test_mask.sum()) if asked.split != "random" and graph.get("test_mask") is not None else 0
    return Measured(
        {"accuracy": (statistics.fmean(values), error)}, judged, digest, seeds=len(values), partial=runs < asked.seeds,
        notes=[f"{runs} of {asked.seeds} runs"] if runs < asked.seeds else [],
    )  # fmt: skip


def ranking(job: Job) -> Measured:
    """Recall, precision and NDCG at 20 of all items ranked; trained by the paper's recipe, judged at its best test epoch as the
    papers do, or the figures of a checkpoint."""
    from offprint.data.interactions import load_interactions
    from offprint.tasks.ranking import evaluate_ranking
    from offprint.tasks.recommendation import train_recommender

    asked, spec = job.asked, job.entry
    data = load_interactions(job.source or asked.data)
    sizes = (spec.kwargs.get("num_users"), spec.kwargs.get("num_items"))
    if asked.data in job.model and sizes != (data.num_users, data.num_items):
        raise DataError(
            f"{job.source or asked.data} has {data.num_users:,} users and {data.num_items:,} items, {asked.data} has {sizes[0]:,} and "
            f"{sizes[1]:,}: it is another data set, or another release of it"
        )
    digest = hashlib.sha256(
        b"".join(p.tobytes() for m in (data.train, data.test) for p in (m.indptr, m.indices))
    ).hexdigest()[:16]
    all_users = bool(getattr(spec.build, "averages_all_users", False))
    users = int((data.test.getnnz(1) > 0).sum())
    if job.checkpoint is not None:
        model = create_model(job.model, **{"num_users": data.num_users, "num_items": data.num_items})
        load_weights(model, job.checkpoint)
        model.set_interactions(data.train)
        found = evaluate_ranking(*model.final_embeddings(), data.train, data.test, (20,), all_users=all_users)
    else:
        overrides = {"epochs": job.limit} if job.limit else {}
        folder = Path(job.out) / f"{job.model}-{asked.data}"
        job.say(f"training by the recipe of {job.model} in {folder}; the same command goes on with it")
        summary = train_recommender(job.model, data, folder, overrides=overrides)
        found = summary["best"]
        if found is None:
            raise OffprintError(f"the run in {folder} tested nothing; give more epochs")
    metrics = {name: (found[name], 0.0) for name in ("recall@20", "ndcg@20", "precision@20")}
    notes = ["the epoch is chosen on the test part, as in the paper"] if job.checkpoint is None else []
    if job.limit and job.checkpoint is None:
        notes.append(f"{job.limit} epochs only")
    return Measured(metrics, users, digest, partial=bool(job.limit and job.checkpoint is None), notes=notes)
