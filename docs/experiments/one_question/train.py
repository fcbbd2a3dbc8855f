"""Train the one-question network: `python train.py DATA CHECKPOINT --minutes 80 [--start WEIGHTS]`."""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from network import OneQuestionNetwork, load_network
from tfiseg.export.training import prepare, update_average
from torch import Tensor

from samples import SampleSet, banks, collate

BATCH = 16  # below 16, one thread computes convolutions without oneDNN, at half the speed
_DECODER_RATE, _PYRAMID_RATE, _BACKBONE_RATE = 2e-3, 6e-4, 2e-4
_WEIGHT_DECAY = 1e-4
_WARM_UP_STEPS = 100
_DECODER_STEPS = 400  # of a new decoder, which learns alone, so that it does not spoil the encoder
_INSIDE_PROMPT = 0.2  # how much the cells of the prompt itself count: they are easy
SHAPE_WEIGHT = 1.0  # of the split rule's log-odds in the evidence of a pair: the network learns the rest
LOGIT_LIMIT = 8.0  # of what a cell adds to the evidence of a pair, here and in linkage
_SAVE_SECONDS = 300
_SAY_STEPS = 50
SEED = 29


def losses_of(logits: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of cells, and of pairs of regions by their mean logit, which is what linkage adds up.

    Neither is balanced: 0 is then the right threshold on what composites show.
    """
    asked = batch["prompts"]
    view, wanted = batch["region_views"][asked], batch["region_owners"][asked]
    weight = batch["weights"][view]
    prompt = batch["regions"][asked]
    owner = batch["owners"][view]
    of_cell = (owner > 0) * (1 - (1 - _INSIDE_PROMPT) * prompt)
    same = (owner == wanted[:, None, None]).float()
    cells = F.binary_cross_entropy_with_logits(logits, same, reduction="none") * of_cell
    cell_loss = (cells.sum((1, 2)) / of_cell.sum((1, 2)).clamp(min=1) * weight).sum() / weight.sum()

    shares = batch["regions"].flatten(1)
    area = shares.sum(1)
    evidence = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).flatten(1) @ shares.T / area.clamp(min=1e-3)
    evidence = evidence + SHAPE_WEIGHT * batch["necks"][asked]
    known = batch["pairs"][asked] & (batch["region_owners"][None] > 0)
    known[torch.arange(len(asked)), asked] = False
    of_pair = known * area.sqrt()[None]
    pairs = F.binary_cross_entropy_with_logits(
        evidence, (batch["region_owners"][None] == wanted[:, None]).float(), reduction="none"
    )
    pair_loss = (pairs * of_pair).sum(1) / of_pair.sum(1).clamp(min=1e-3)
    return cell_loss, (pair_loss * weight).sum() / weight.sum()


def optimizer_of(network: OneQuestionNetwork) -> torch.optim.Optimizer:
    """AdamW with lower rates for layers that know something."""
    backbone = [p for p in network.encoder.blocks.parameters() if p.requires_grad]
    known = {id(p) for p in backbone}
    pyramid = [p for p in network.encoder.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": list(network.decoder.parameters()), "peak": _DECODER_RATE},
        {"params": pyramid, "peak": _PYRAMID_RATE},
        {"params": backbone, "peak": _BACKBONE_RATE},
    ]
    return torch.optim.AdamW([g | {"lr": g["peak"]} for g in groups], weight_decay=_WEIGHT_DECAY)


class Training:
    """A network in training, its state, and the CPU time that it has learned for."""

    def __init__(self, start: Path | None, checkpoint: Path, minutes: float) -> None:
        self.checkpoint, self.minutes = checkpoint, minutes
        self.network = OneQuestionNetwork()
        if start is not None:
            self.network.load_state_dict(load_network(start).state_dict())
        else:
            self.network.start_from_shipped()
        self.decoder_steps = 0 if start is not None else _DECODER_STEPS
        self.network.freeze()
        self.network.to(memory_format=torch.channels_last)
        self.optimizer = optimizer_of(self.network)
        self.average = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    def learn(self, batch: dict[str, Tensor]) -> tuple[float, float]:
        """Take one step; returns the two losses."""
        share = min(1.0, (self.step + 1) / _WARM_UP_STEPS) * (
            0.5 + 0.5 * math.cos(math.pi * min(1.0, self.seconds / 60 / self.minutes))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * (share + 0.003)
        self.network.train()
        prompts, view = batch["regions"][batch["prompts"]][:, None], batch["region_views"][batch["prompts"]]
        with torch.set_grad_enabled(self.step >= self.decoder_steps):
            encoded = self.network.encode(batch["images"], batch["masks"])
        parts = losses_of(self.network.decoder(*encoded, prompts, view), batch)
        self.optimizer.zero_grad()
        (parts[0] + parts[1]).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        update_average(self.average, self.network, self.step)
        self.step += 1
        return parts[0].item(), parts[1].item()

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        part = self.checkpoint.with_suffix(".part")
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"average": self.average, "step": self.step, "seconds": self.seconds}, part)
        part.replace(self.checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with train/ and semantic/")
    parser.add_argument("checkpoint", type=Path, help="written every five minutes; resumed if it exists")
    parser.add_argument("--minutes", type=float, default=80, help="of CPU time in all, the schedule's length")
    parser.add_argument("--cutouts", type=Path, help="class maps of `tfiseg train cutouts`")
    parser.add_argument("--start", type=Path, help="weights to begin with in place of the shipped network's")
    options = parser.parse_args()
    prepare(SEED, 1)
    used, _ = banks(options.data, options.cutouts, options.checkpoint.with_suffix(".bank"))
    print(f"{len(used.objects)} objects in {len(used.pictures)} pictures", flush=True)
    training = Training(options.start, options.checkpoint, options.minutes)
    samples = SampleSet(used, SEED)
    mean, waited, saved = [0.0, 0.0], 0.0, time.monotonic()
    while training.seconds < 60 * options.minutes:
        busy = time.process_time()
        batch = collate([samples[training.step * BATCH + i] for i in range(BATCH)])
        waited += time.process_time() - busy
        losses = training.learn(batch)
        training.seconds += time.process_time() - busy
        share = max(0.02, 1 / training.step)
        mean = [m + (x - m) * share for m, x in zip(mean, losses, strict=True)]
        if training.step % _SAY_STEPS == 0:
            losses = f"cells {mean[0]:.3f}, pairs {mean[1]:.3f}"
            times = f"{training.seconds / 60:.1f} min, samples {waited:.0f} s of the last {_SAY_STEPS} steps"
            print(f"{time.strftime('%H:%M')} step {training.step}: {losses}, {times}", flush=True)
            waited = 0.0
        if time.monotonic() - saved > _SAVE_SECONDS:
            training.save()
            saved = time.monotonic()
    training.save()


if __name__ == "__main__":
    main()
