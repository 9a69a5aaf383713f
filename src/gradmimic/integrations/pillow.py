"""From a Pillow picture to a tensor, as contrastive models were trained: resize, crop, normalize.

x = (p / 255 − mean) / std        p [3, s, s], the square in the middle of the resized picture
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, by channel
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3


@dataclass(frozen=True)
class Picture:
    """Make the input of a model out of a picture; can be pickled.

    Args:
        size: the short side in pixels, the other one in proportion; or height and width.
        crop: height and width of what is cut out of the middle; None keeps all.
        mean: of the pixels, 0 … 1, by channel.
        std: likewise.
        resample: Pillow's number of the filter.
        scale: of a pixel, 0 … 255.

    Example:
        >>> from PIL import Image
        >>> Picture(8, (8, 8))(Image.new("RGB", (20, 10))).shape
        torch.Size([3, 8, 8])
    """

    size: int | tuple[int, int]
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    resample: int = BICUBIC
    scale: float = 1 / 255

    def __call__(self, picture: "Image") -> Tensor:
        """Return ``[3, h, w]`` float32."""
        from PIL.Image import Resampling

        small = picture.convert("RGB").resize(self._sides(picture), Resampling(self.resample))
        if self.crop is not None:
            (w, h), (height, width) = small.size, self.crop
            left, top = (w - width) // 2, (h - height) // 2
            small = small.crop((left, top, left + width, top + height))  # black outside
        raw = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        pixels = raw.view(small.height, small.width, 3).permute(2, 0, 1)  # [3, h, w]
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return ((pixels.float() * self.scale - mean) / std).contiguous()

    def _sides(self, picture: "Image") -> tuple[int, int]:
        """Return width and height to resize to."""
        if not isinstance(self.size, int):
            height, width = self.size
            return width, height
        w, h = picture.size
        if w <= h:
            return self.size, max(1, int(self.size * h / w))
        return max(1, int(self.size * w / h)), self.size
