"""Data sets that others prepared with TensorFlow Datasets become cohorts, without TensorFlow."""

import contextlib
import io
import sys

import numpy as np
import pytest

from fusion_jax.data.batches import Batches
from fusion_jax.data.builders import open_builder
from fusion_jax.data.image import UnreadableFile

N = 7


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    import tensorflow_datasets as tfds

    class Nodules(tfds.core.ShardBasedBuilder, skip_registration=True):
        """Somebody's data set."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Tensor(shape=(6, 5, 1), dtype=np.uint8, encoding="zlib"),
                "grey": tfds.features.Tensor(shape=(6, 5), dtype=np.float32),
                "markers": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                "finding": tfds.features.ClassLabel(names=["nodule", "clear"]),
                "patient": tfds.features.Text(),
                "age": tfds.features.Scalar(dtype=np.int64),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), disable_shuffling=True)

        def _shard_iterators_per_split(self, dl_manager):
            return {"train": [self._cases], "test": [lambda: iter(list(self._cases())[:2])]}

        def _cases(self):
            for row in range(N):
                yield (
                    row,
                    {
                        "image": np.full((6, 5, 1), row, np.uint8),
                        "grey": np.full((6, 5), row / 2, np.float32),
                        "markers": np.full(3, row, np.float32),
                        "finding": row % 2 if row < N - 1 else -1,
                        "patient": f"p{row // 2}",
                        "age": 40 + row,
                    },
                )

    with contextlib.redirect_stdout(io.StringIO()):
        builder = Nodules(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
        builder.download_and_prepare()
    return builder.data_dir


def opened(folder, **others):
    settings = {
        "split": "train",
        "sources": {"xray": "image", "markers": "markers"},
        "roles": {"finding": "label", "age": "input", "patient": "group"},
        "patient_id": "patient",
    }
    return open_builder(folder, **{**settings, **others})


def test_features_become_table_sources_and_classes(prepared):
    cohort = opened(prepared)
    assert len(cohort) == N
    assert cohort.classes == ("nodule", "clear")
    assert cohort.label.tolist() == [0, 1, 0, 1, 0, 1, -1]
    assert cohort.patient_id.tolist() == ["p0", "p0", "p1", "p1", "p2", "p2", "p3"]
    assert cohort.table["age"].tolist() == list(range(40, 47))
    assert {name: source.kind for name, source in cohort.sources.items()} == {
        "xray": "image",
        "markers": "array",
        "clinical": "table",
    }
    np.testing.assert_array_equal(cohort.sources["xray"][3], np.full((6, 5, 1), 3, np.uint8))
    assert "tensorflow" not in sys.modules


def test_batches_and_subsets_read_the_right_records(prepared):
    cohort = opened(prepared, roles={"finding": "label"}).take([5, 0, 2])
    batch = Batches(cohort, np.arange(3), 3, seed=(0,), sampler="sequential").at(0)
    assert batch.inputs["xray"][:, 0, 0, 0].tolist() == [5, 0, 2]
    assert batch.inputs["markers"][:, 0].tolist() == [5, 0, 2]
    assert batch.target["label"].tolist() == [1, 0, 0]


def test_an_image_without_channels_gets_one(prepared):
    assert opened(prepared, sources=["grey"]).sources["grey"][1].shape == (6, 5, 1)


def test_cases_may_be_named_by_a_feature(prepared):
    assert opened(prepared, case_id="age", roles={"finding": "label"}).case_id[:2] == ("40", "41")
    assert len(opened(prepared, split="test")) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "val"}, "no split 'val'; it has train, test"),
        ({"sources": ["imge"]}, r"'imge' is no image or vector; the features are .*image \(6, 5, 1\)"),
        ({"sources": ["age"]}, "'age' is no image or vector"),
        ({"roles": {"image": "input"}}, "'image' is no scalar"),
        ({"patient_id": "subject"}, "'subject' is no scalar"),
    ],
)
def test_features_that_do_not_fit_are_named(prepared, settings, message):
    with pytest.raises(ValueError, match=message):
        opened(prepared, **settings)


def test_a_folder_without_data_is_one_error(tmp_path):
    with pytest.raises(UnreadableFile, match="holds no prepared data set"):
        opened(tmp_path)
