"""The one-question network: which pixels of the class belong to the object that a region is part of?

The encoder is the shipped instance network's backbone and pyramid and sees a view once; a light decoder
answers for each region. `python network.py CHECKPOINT WEIGHTS` writes a checkpoint's weights as float16.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tfiseg.export.instance.network import DISPLACEMENT_UNIT_PX, InstanceNetwork, ViewFeatures
from tfiseg.export.instance.train import SHIPPED_WEIGHTS, load_initial_weights, normalize_inputs
from tfiseg.export.semantic.network import upsample_like
from torch import Tensor, nn

VIEW_PX = 192
STRIDE = 4
FROZEN_BLOCKS = 7  # of the backbone, 0 to 6: strides 2 to 8, more than half of the time of a step
_WIDTH = 48
_PROMPT_PLANES = 6  # mask, relative row and column, similarity, votes' rows and columns
_FEATURE_SCALE = 8.0  # square root of the encoder's channels
_MOST_HALF = 6e4  # float16 ends at 65,504

Encoded = tuple[ViewFeatures, Tensor]  # features of views, and displacements, see PromptDecoder


def _convolution(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU6(inplace=True)
    )


class PromptDecoder(nn.Module):
    """Plain convolutions at strides 8 to 32, one light layer at stride 4.

    The prompt enters as its mask, as coordinates relative to its centroid in units of its size, as the
    similarity of each cell's features with its own mean feature, and as votes: where a
    cell's displacement points at, relative to where the prompt's do.
    """

    def __init__(self, channels: int = 64, width: int = _WIDTH) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.enter_view = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in range(3))
        self.enter_prompt = nn.ModuleList(
            nn.Conv2d(_PROMPT_PLANES, width, 3, padding=1, bias=False) for _ in range(3)
        )
        self.enter_norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.refine = nn.ModuleList(_convolution(width, width) for _ in range(3))
        self.context = _convolution(width, width)
        self.fine_view = nn.Conv2d(channels, 32, 1)
        self.fine_prompt = nn.Conv2d(_PROMPT_PLANES, 32, 1, bias=False)
        self.fine_coarse = nn.Conv2d(width, 32, 1, bias=False)
        self.out = nn.Conv2d(32, 1, 1)

    def forward(
        self, features: ViewFeatures, displacement: Tensor, prompts: Tensor, view_index: Tensor
    ) -> Tensor:
        """Answer each prompt.

        Args:
            features: features of N views of S pixels.
            displacement: of each cell to its object's center, (N, 2, S / 4, S / 4), in units of 32 px.
            prompts: float32 (P, 1, S / 4, S / 4), the share of each cell that belongs to the region.
            view_index: int64 (P,), the view of each prompt.

        Returns:
            Logits (P, S / 4, S / 4), positive where the cell belongs to the region's object.
        """
        extra = self._of_prompts(features.deep, displacement, prompts, view_index)
        levels = []
        for k, level in enumerate(features.pyramid[1:]):
            shown = self.enter_view[k](level)[view_index]  # once per view, not once per prompt
            asked = self.enter_prompt[k](F.avg_pool2d(extra, 2 ** (k + 1)))
            levels.append(F.relu6(self.enter_norm[k](shown + asked)))
        y = self.refine[2](levels[2] + self.context(levels[2]))
        for k in (1, 0):
            y = self.refine[k](levels[k] + upsample_like(y, levels[k]))
        coarse = upsample_like(self.fine_coarse(y), extra)
        fine = self.fine_view(features.deep)[view_index] + self.fine_prompt(extra) + coarse
        answer: Tensor = self.out(F.relu6(fine))[:, 0]
        return answer

    def _of_prompts(self, deep: Tensor, displacement: Tensor, prompts: Tensor, view_index: Tensor) -> Tensor:
        """What a prompt says of each cell, (P, planes, h, w)."""
        count, _, h, w = prompts.shape
        area = prompts.sum((1, 2, 3)).clamp(min=1e-3)
        flat = deep.flatten(2)[view_index]
        mean = torch.bmm(flat, prompts.flatten(1)[:, :, None])[:, :, 0] / area[:, None]
        similar = torch.bmm(self.query(mean)[:, None], flat).view(count, 1, h, w) / _FEATURE_SCALE
        rows = torch.arange(h, dtype=torch.float32, device=deep.device)[:, None].expand(h, w) + 0.5
        columns = torch.arange(w, dtype=torch.float32, device=deep.device)[None].expand(h, w) + 0.5
        at = torch.stack([rows, columns])[None]
        votes = (at + displacement * (DISPLACEMENT_UNIT_PX / STRIDE))[view_index]
        unit = (3 * area.sqrt().clamp(min=2))[:, None, None, None]
        relative = [
            (places - (places * prompts).sum((2, 3), keepdim=True) / area[:, None, None, None]) / unit
            for places in (at, votes)
        ]
        return torch.cat([prompts, torch.tanh(similar), *(r.clamp(-2, 2) for r in relative)], 1)


class OneQuestionNetwork(nn.Module):
    """Encoder and decoder; starts from the shipped instance network's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = InstanceNetwork()
        for name in ("boundary_side", "boundary", "outlines"):
            delattr(self.encoder, name)  # heads for other questions
        self.decoder = PromptDecoder()

    def forward(self, images: Tensor, masks: Tensor, prompts: Tensor, view_index: Tensor) -> Tensor:
        """Logits (P, S / 4, S / 4) of prompts (P, 1, S / 4, S / 4) in the views uint8 (N, S, S, 3) BGR with
        class masks uint8 (N, S, S) 0/1."""
        return self.decoder(*self.encode(images, masks), prompts, view_index)

    def encode(self, images: Tensor, masks: Tensor) -> Encoded:
        """Features of the views, and displacements."""
        features = self.encoder.extract_features(*normalize_inputs(images, masks))
        return features, self.encoder.head(features.deep)[:, :2]

    def start_from_shipped(self) -> None:
        """Load the encoder of the network that ships."""
        shipped = InstanceNetwork()
        load_initial_weights(shipped, SHIPPED_WEIGHTS)
        kept = self.encoder.state_dict().keys()
        self.encoder.load_state_dict({k: v for k, v in shipped.state_dict().items() if k in kept})

    def freeze(self) -> None:
        """Exclude the first blocks from training."""
        for part in (self.encoder.stem, *self.encoder.blocks[:FROZEN_BLOCKS]):
            part.requires_grad_(False)


def load_network(path: Path) -> OneQuestionNetwork:
    """Read the averaged weights of a checkpoint, or a float16 file of ``save_half``."""
    network = OneQuestionNetwork()
    network.load_state_dict(torch.load(path, weights_only=True)["average"])
    return network.eval().to(memory_format=torch.channels_last)


def save_half(network: OneQuestionNetwork, path: Path) -> None:
    """Write the weights as float16, those that it can't hold as they are."""
    half = {
        k: v.half() if v.dtype.is_floating_point and v.abs().max() < _MOST_HALF else v
        for k, v in network.state_dict().items()
    }
    torch.save({"average": half}, path)


if __name__ == "__main__":
    save_half(load_network(Path(sys.argv[1])), Path(sys.argv[2]))
