"""Planted canaries: the same wrong pairs at every visit, beside the real ones."""

from collections import Counter

import torch
from test_clip_pool import held

from gradmimic.canaries import Canaries
from gradmimic.contrastive import Embedded
from gradmimic.pair_model import PairModel
from gradmimic.run.clip.planted import PLANTED, Planted, Swapped, plant
from gradmimic.run.clip.train import no_canaries, on_device


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image = torch.nn.Linear(3, 4, dtype=torch.float64)
        self.text = torch.nn.Linear(1, 4, dtype=torch.float64)


def toy():
    model = Toy()
    unit = torch.nn.functional.normalize
    one = torch.tensor(10.0, dtype=torch.float64)
    return PairModel(
        model, "toy", "clip",
        lambda model, images: unit(model.image(images.flatten(1).double()), dim=1),
        lambda model, tokens: unit(model.text(tokens["words"].double().mean(1)[:, None]), dim=1),
        lambda model: (one, None), {"image": ["image.weight"], "text": ["text.weight"]},
        None, None,
    )  # fmt: skip


def test_canaries_are_pictures_with_the_caption_of_another():
    data = held(40, 8)
    planted = plant(data, 0.25, seed=3)
    assert len(planted) == 10
    assert len(set(planted.ids)) == 10
    own = dict(zip(data.ids, data.captions, strict=True))
    assert all(own[i] != texts for i, texts in zip(planted.ids, planted.captions, strict=True))
    assert set(planted.captions) <= set(data.captions)
    assert all(
        float(image[0, 0, 0]) == int(i)
        for i, image in zip(planted.ids, planted.images, strict=True)
    )
    assert plant(data, 0.25, seed=3).captions == planted.captions
    assert plant(data, 0.25, seed=4).ids != planted.ids
    assert [len(plant(held(n, 8), None, 0)) for n in (10, 1000, 4000)] == [3, 200, 400]


def test_each_comes_once_an_epoch_and_is_learned_beside_the_batch():
    pair, data = toy(), held(40, 8)
    drawing = Planted(plant(data, 0.3, seed=0), data.steps(0))
    for epoch in range(2):
        seen = Counter()
        for batch in [own for _, batches in data.rounds(epoch) for own in batches]:
            losses, canaries = drawing(pair, pair.model, batch, epoch)
            assert len(losses) == len(batch)
            assert set(canaries.kinds) == {PLANTED}
            assert canaries.trained
            seen.update(canaries.ids)
        assert seen == Counter(drawing.pairs.ids)


def test_losses_are_those_of_one_batch_of_both():
    pair, data = toy(), held(12, 6)
    planted = plant(data, 0.5, seed=0)
    drawing = Planted(planted, 2)
    batch = data.batch(torch.arange(6))
    losses, canaries = drawing(pair, pair.model, batch, 0)
    rows = [planted.ids.index(own) for own in canaries.ids]
    texts = [*batch.texts, *(planted.captions[row][0] for row in rows)]
    images = torch.cat([batch.images, planted.images[rows]])
    whole = pair.losses(
        Embedded(
            pair.encode_images(pair.model, images),
            pair.encode_texts(pair.model, {"words": data.tokenize(texts)["words"]}),
            torch.tensor(10.0, dtype=torch.float64),
        )
    )
    assert torch.allclose(losses, whole[:6])
    assert torch.allclose(canaries.losses, whole[6:])


def test_swapped_ones_leave_the_losses_as_they_are():
    pair, data = toy(), held(12, 12)
    batch = on_device(data.batch(torch.arange(12)), torch.device("cpu"))
    alone, none = no_canaries(pair, pair.model, batch, 0)
    losses, canaries = Swapped(Canaries(1.0))(pair, pair.model, batch, 0)
    assert none is None
    assert torch.equal(alone, losses)
    assert len(canaries.losses) == 12
