import pytest

from bnfree.datamodules import ImageNetDataModule
from bnfree.errors import InputError


@pytest.mark.filterwarnings("ignore:.*ImageNet's 1000")
def test_val_is_the_test_set_and_validation_comes_from_train(image_folder):
    data = ImageNetDataModule(str(image_folder({"train": 6, "val": 2})), 1, val_split=3, image_size=32, num_workers=0)
    assert (data.num_classes, data.image_shape) == (3, (3, 32, 32))
    data.setup()
    assert [len(d) for d in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())] == [15, 3, 6]
    assert all(name.startswith("val/") for name in data.predict_image_names)


def test_another_number_of_classes_than_1000_warns(image_folder):
    with pytest.warns(UserWarning, match="3 classes and not ImageNet's 1000"):
        ImageNetDataModule(str(image_folder({"train": 1, "val": 1})))


def test_missing_val_is_refused_at_once(image_folder):
    with pytest.raises(InputError, match="has no val/"):
        ImageNetDataModule(str(image_folder({"train": 1})))
