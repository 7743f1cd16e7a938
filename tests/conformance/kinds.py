"""The same twelve photographs as every kind of source, with a way to attack each kind."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tests.conftest import jpeg, photograph

from substyle.pipelines.sources import SourceConfig

CLASSES = ("n01440764", "n02102040", "n03000684")
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
METADATA = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Photograph:
    """A photograph, independent of the kind of source; the number is unique."""

    number: int
    label: str
    split: str
    data: bytes

    @property
    def name(self) -> str:
        return f"ILSVRC2012_val_{self.number:08d}" if self.split == "val" else f"{self.label}_{self.number}"


def photographs(numbers: Iterable[int] = range(1, 13)) -> list[Photograph]:
    """Split of the image: every third one is for validation."""
    return [
        Photograph(n, CLASSES[n % 3], "val" if n % 4 == 0 else "train", jpeg(photograph(n, 40 + n % 40, 60 - n % 20)))
        for n in numbers
    ]


def of_split(photos: Iterable[Photograph], split: str) -> list[Photograph]:
    return [photo for photo in photos if photo.split == split]


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
    build: creates the source in an empty folder.
    path: path to open, relative to the folder.
    smuggle: tries to include a file outside the folder.
    config: configuration to open it, by folder.
    """

    name: str
    build: Callable[[Path, Sequence[Photograph]], None]
    path: str
    smuggle: Callable[[Path, Path], None]
    config: Callable[[Path], SourceConfig] = lambda root: SourceConfig()


def folder(root: Path, photos: Sequence[Photograph]) -> None:
    for photo in photos:
        place = root / photo.split / photo.label / f"{photo.name}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(photo.data)


def link_into(root: Path, secret: Path) -> None:
    (root / "train" / CLASSES[0] / "stolen.JPEG").symlink_to(secret)
    (root / "train" / "n00000000").symlink_to(secret.parent)


def pairs(root: Path, photos: Sequence[Photograph]) -> None:
    for name in ("identity", "phone"):
        folder(root / name, photos)


def link_into_pairs(root: Path, secret: Path) -> None:
    link_into(root / "identity", secret)
    (root / "stolen").symlink_to(secret.parent)


def listed(delimiter: str) -> Callable[[Path, Sequence[Photograph]], None]:
    def build(root: Path, photos: Sequence[Photograph]) -> None:
        rows = [("label", "path", "split")]
        (root / "images").mkdir()
        for photo in photos:
            (root / "images" / f"{photo.name}.jpg").write_bytes(photo.data)
            rows.append((photo.label, f"./images//{photo.name}.jpg", photo.split))
        path = root / ("list.csv" if delimiter == "," else "list.tsv")
        path.write_text("".join(delimiter.join(row) + "\n" for row in rows))

    return build


def list_outside(root: Path, secret: Path) -> None:
    (root / "images" / "link.jpg").symlink_to(secret)
    (root / "images" / "up").symlink_to(secret.parent)
    names = ["../outside/secret.jpg", "images/../../outside/secret.jpg", str(secret)]
    names += ["images/link.jpg", "images/up/secret.jpg"]
    with (root / "list.csv").open("a") as file:
        file.writelines(f"{CLASSES[0]},{name},train\n" for name in names)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def tar(root: Path, photos: Sequence[Photograph]) -> None:
    for split in ("train", "val"):
        chosen = of_split(photos, split)
        for start in range(0, len(chosen), 3):
            part = chosen[start : start + 3]
            members: list[tuple[str, bytes]] = []
            for photo in part:
                # class by .cls in training shards, by .json in the others
                ending, label = (
                    ("cls", photo.label) if split == "train" else ("json", json.dumps({"label": photo.label}))
                )
                members += [(f"{photo.number:04d}.{ending}", label.encode()), (f"{photo.number:04d}.jpg", photo.data)]
            write_tar(root / f"{split}-{part[0].number:04d}.tar", members)


def tar_outside(root: Path, secret: Path) -> None:
    with tarfile.open(root / "train-0099.tar", "w") as tar:
        for name, kind, target in (
            ("../outside/secret.jpg", tarfile.REGTYPE, ""),
            (str(secret), tarfile.REGTYPE, ""),
            ("link.jpg", tarfile.SYMTYPE, str(secret)),
            ("hard.jpg", tarfile.LNKTYPE, str(secret)),
            ("device.jpg", tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    write_tar(root.parent / "outside" / "other.tar", [("secret.jpg", secret.read_bytes())])
    (root / "train-0098.tar").symlink_to(root.parent / "outside" / "other.tar")


def structs(photos: Sequence[Photograph]) -> pa.Table:
    """Images and class labels as written by Hugging Face."""
    images = [{"bytes": photo.data, "path": f"{photo.name}.JPEG"} for photo in photos]
    labels = [CLASSES.index(photo.label) for photo in photos]
    table = pa.table({"image": pa.array(images, IMAGE), "label": pa.array(labels, pa.int64())})
    return table.replace_schema_metadata(METADATA)


def hub(root: Path, photos: Sequence[Photograph]) -> None:
    (root / "data").mkdir()
    (root / "README.md").write_text("a data set")
    for split, name in (("train", "train"), ("val", "validation")):
        chosen = of_split(photos, split)
        for start in range(0, len(chosen), 5):
            part = chosen[start : start + 5]
            path = root / "data" / f"{name}-{part[0].number:05d}-of-00099.parquet"
            pq.write_table(structs(part), path, row_group_size=2)


def hub_outside(root: Path, secret: Path) -> None:
    outside = root.parent / "outside" / "other.parquet"
    pq.write_table(structs([dataclasses.replace(photographs([51])[0], data=secret.read_bytes())]), outside)
    (root / "data" / "train-00098-of-00099.parquet").symlink_to(outside)
    image = pa.array([{"bytes": None, "path": str(secret)}, {"bytes": None, "path": "../outside/secret.jpg"}], IMAGE)
    table = pa.table({"image": image, "label": pa.array([0, 0])}).replace_schema_metadata(METADATA)
    pq.write_table(table, root / "data" / "train-00097-of-00099.parquet")


def one_file(root: Path, photos: Sequence[Photograph]) -> None:
    """Plain bytes, text labels, ids, and row groups out of the order of ids."""
    rows = [{"id": p.name, "picture": p.data, "class": p.label, "split": p.split} for p in photos]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(2, "class", table["class"].dictionary_encode())
    pq.write_table(table, root / "photographs.parquet", row_group_size=5)


def one_file_config(root: Path) -> SourceConfig:
    return SourceConfig(image_column="picture", label_column="class", path_column="id")


def saved(root: Path, photos: Sequence[Photograph]) -> None:
    """A DatasetDict as written by save_to_disk."""
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    for split, name in (("train", "train"), ("val", "validation")):
        chosen = of_split(photos, split)
        place, file = root / name, f"data-{chosen[0].number:05d}-of-00099.arrow"
        place.mkdir()
        table = structs(chosen)
        with pa.ipc.new_stream(place / file, table.schema) as stream:
            stream.write_table(table, max_chunksize=3)
        (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": file}], "_split": name}))
        (place / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def saved_outside(root: Path, secret: Path) -> None:
    table = structs([dataclasses.replace(photographs([51])[0], data=secret.read_bytes())])
    outside = root.parent / "outside" / "other.arrow"
    with pa.ipc.new_stream(outside, table.schema) as stream:
        stream.write_table(table)
    (root / "train" / "link.arrow").symlink_to(outside)
    state = json.loads((root / "train" / "state.json").read_text())
    names = ["../../outside/other.arrow", str(outside), "link.arrow", "..", "nothing.arrow"]
    state["_data_files"] += [*({"filename": name} for name in names), {"filename": 3}, "x", {}]
    (root / "train" / "state.json").write_text(json.dumps(state))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "../outside", 7]}))
    (outside.parent / "state.json").write_text(json.dumps({"_data_files": [{"filename": "other.arrow"}]}))


def imagenet(root: Path, photos: Sequence[Photograph]) -> None:
    folder(root, of_split(photos, "train"))
    (root / "val").mkdir(exist_ok=True)
    (root / "test").mkdir(exist_ok=True)
    (root / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"no class is known of this")
    for photo in of_split(photos, "val"):
        (root / "val" / f"{photo.name}.JPEG").write_bytes(photo.data)


def synset_list(root: Path) -> SourceConfig:
    """One synset per line for all 50,000 images: the numbers in names select lines."""
    path = root.parent / "synsets.txt"
    path.write_text("".join(f"{CLASSES[n % 3]}\n" for n in range(1, 101)))
    return SourceConfig(synsets=path)


def kaggle_list(root: Path) -> SourceConfig:
    path = root.parent / "LOC_val_solution.csv"
    of = {n: CLASSES[n % 3] for n in range(100, 0, -1)}
    names = [f"ILSVRC2012_val_{n:08d},{synset} 85 1 499 272 {synset} 3 4 5 6 " for n, synset in of.items()]
    path.write_text("\n".join(["ImageId,PredictionString", *names]) + "\n")
    return SourceConfig(kind="imagenet", synsets=path)


def nothing(root: Path, secret: Path) -> None:
    """No attack."""


KINDS = [
    Kind("folder", folder, ".", link_into),
    Kind("variants", pairs, ".", link_into_pairs, lambda root: SourceConfig(kind="variants")),
    Kind("csv", listed(","), "list.csv", list_outside),
    Kind("tsv", listed("\t"), "list.tsv", nothing),
    Kind("tar", tar, ".", tar_outside),
    Kind("tar-pattern", tar, "{train,val}-*.tar", tar_outside),
    Kind("parquet-hub", hub, ".", hub_outside),
    Kind("parquet-file", one_file, "photographs.parquet", nothing, one_file_config),
    Kind("arrow-saved", saved, ".", saved_outside),
    Kind("imagenet-list", imagenet, ".", link_into, synset_list),
    Kind("imagenet-kaggle", imagenet, ".", link_into, kaggle_list),
]
