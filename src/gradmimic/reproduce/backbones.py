"""Any image classifier of transformers, by hub id or folder, with a fresh linear head.

    x = (p / 255 − mean) / std        p [b, 3, s, s], stretched to the side that the model wants
    z = W h(x) + b                    h: what its own classifier sees, [CLS] or a pooled map

The head's own weights, where it has any, are never used: W and b are drawn from a seed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.direction import find_head
from gradmimic.errors import ConfigError
from gradmimic.extras import import_extra
from gradmimic.reproduce.digest import digest

_AT_ONCE = 64  # pictures, where no gradient is wanted


class Backbone(nn.Module):
    """A classifier of pictures, ``[b, 3, s, s]`` uint8 to ``[b, K]`` logits.

    Args:
        source: a hub id ``"owner/name[@revision]"``, or a folder that ``save_pretrained`` wrote.
        classes: K.

    Attributes:
        size: the side that the model wants, in pixels.
        width: of what the head sees.
        digest: of all weights below the head.

    Raises:
        ConfigError: there is no such model, or its last layer is not linear.
        MissingExtraError: transformers is not installed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: str, classes: int) -> None:
        super().__init__()
        model, said = _read(source, classes)
        self.model, self.size, self._head = model, _side(said), find_head(model)
        head = model.get_submodule(self._head)
        if not isinstance(head, nn.Linear) or head.out_features != classes:
            raise ConfigError(
                f"The last layer of the backbone {source} is {self._head}, {head}; expected a "
                f"linear one of {classes} classes. Take another backbone."
            )
        self.width = head.in_features
        for name, values in (("mean", said.image_mean), ("std", said.image_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))  # [3, 1, 1]
        below = [t for n, t in model.state_dict().items() if not n.startswith(f"{self._head}.")]
        self.digest = digest(*below)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return ``[b, K]`` logits."""
        if torch.is_grad_enabled():
            return self._logits(pictures)
        return torch.cat([self._logits(part) for part in pictures.split(_AT_ONCE)])

    def with_head(self, head: nn.Linear) -> "Backbone":
        """Give it this head, in place."""
        name, _, last = self._head.rpartition(".")
        setattr(self.model.get_submodule(name), last, head)
        return self

    @torch.no_grad()
    def encode(self, pictures: Tensor, on_step: Callable[[], object] = lambda: None) -> Tensor:
        """Return ``[n, d]`` on the CPU, what the head sees of ``[n, 3, s, s]`` pictures."""
        seen: list[Tensor] = []
        watch = self.model.get_submodule(self._head).register_forward_pre_hook(
            lambda _module, inputs: seen.append(inputs[0].float().cpu())
        )
        self.eval()
        try:
            for part in pictures.split(_AT_ONCE):
                self._logits(part.to(self.mean.device))
                on_step()
        finally:
            watch.remove()
        return torch.cat(seen)

    def _logits(self, pictures: Tensor) -> Tensor:
        x = pictures.float() / 255
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear")
        logits: Tensor = self.model(pixel_values=(x - self.mean) / self.std).logits
        return logits


def encode_steps(pictures: int) -> int:
    """Return how many steps :meth:`Backbone.encode` takes."""
    return -(-pictures // _AT_ONCE)


def fresh_head(width: int, classes: int, seed: int) -> nn.Linear:
    """Draw a linear layer; the same seed gives the same one.

    Example:
        >>> bool((fresh_head(2, 3, 0).weight == fresh_head(2, 3, 0).weight).all())
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, classes)


def _read(source: str, classes: int) -> tuple[Any, Any]:
    """Read a model and what its pictures must be like."""
    library = import_extra("transformers", "reproduce")
    name, _, revision = (source, "", "") if Path(source).is_dir() else source.partition("@")
    with _quiet(library.utils.logging):
        try:
            model = library.AutoModelForImageClassification.from_pretrained(
                name, revision=revision or None, num_labels=classes, ignore_mismatched_sizes=True
            )
            # its picture processing is done here; Pillow's needs no torchvision to be read
            said = library.AutoImageProcessor.from_pretrained(
                name, revision=revision or None, backend="pil"
            )
        except Exception as error:  # what it raises on damaged or missing files is open-ended
            raise ConfigError(
                f"The backbone {source} could not be read: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:500]} Expected a folder that save_pretrained of "
                "an image classifier and of its image processor wrote, the id of one on the hub, "
                "or features."
            ) from error
    return model.float(), said


def _side(said: Any) -> int:
    """Return the side of the square that an image processor makes, or cuts out of the middle."""
    size = dict(said.crop_size if getattr(said, "do_center_crop", None) else said.size)
    return int(size.get("height") or size["shortest_edge"])


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep transformers from telling that a head is fresh: it is meant to be."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
