"""Where photographs come from. A source lists its images once; their bytes are read when they are needed."""

from substyle.pipelines.sources.base import EXTENSIONS, SPLIT_FOLDERS, SPLITS, ImageRecord, Records, Source, Understood
from substyle.pipelines.sources.config import SourceConfig
from substyle.pipelines.sources.description import describe
from substyle.pipelines.sources.folder import FolderSource
from substyle.pipelines.sources.imagenet import ImageNetSource
from substyle.pipelines.sources.listing import ListSource
from substyle.pipelines.sources.named import Named, absolute_root
from substyle.pipelines.sources.opening import kind_of, kind_of_name, open_source
from substyle.pipelines.sources.table import TableSource
from substyle.pipelines.sources.tar import TarSource

__all__ = [
    "EXTENSIONS",
    "SPLITS",
    "SPLIT_FOLDERS",
    "FolderSource",
    "ImageNetSource",
    "ImageRecord",
    "ListSource",
    "Named",
    "Records",
    "Source",
    "SourceConfig",
    "TableSource",
    "TarSource",
    "Understood",
    "absolute_root",
    "describe",
    "kind_of",
    "kind_of_name",
    "open_source",
]
