"""How fast training and detection are on a device: printed, and not judged."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from models import Darknet
from tests.gpu.checks import pinned
from tests.networks import randomize
from tests.scene import dataset_of, save_labelled
from tests.stepping import make_trainer, random_batch
from utils.darknet.cfg import Block
from utils.data.augmentations import Augmentation
from utils.data.loader import EpochSampler, Waiting, loader
from utils.detection.inference import Inference
from utils.devices import default_precision
from utils.errors import InputError
from utils.pruning.pruner import Pruner
from utils.timing import Stopwatch, time_in_turns
from utils.workers import default_workers

WARM_UP = 5  # steps


def photographs(folder: Path, count: int, classes: int) -> list[Path]:
    """JPEG files of 640x480 with three boxes each."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        lines = [f"{k % classes} 0.{3 + k} 0.5 0.2 0.3" for k in range(3)]
        paths.append(save_labelled(folder, f"p{number}", coarse.resize((640, 480), Image.Resampling.BICUBIC), lines))
        jpeg = paths[-1].with_suffix(".jpg")
        Image.open(paths[-1]).save(jpeg, quality=90)
        paths[-1].unlink()
        paths[-1] = jpeg
    return paths


def print_training_speed(
    device: torch.device,
    folder: Path,
    blocks: list[Block],
    batch_sizes: Sequence[int],
    images: int = 512,
    steps: int = 30,
    workers: int | None = None,
    side: int | None = None,
) -> None:
    """Images per second of training with the loader and with a resident batch, and the share of waiting for images."""
    spec = Darknet(blocks).spec
    side, classes = side or spec.height, spec.heads[0].classes
    paths = photographs(folder, images, classes)
    workers = default_workers() if workers is None else workers
    for batch_size in batch_sizes:
        settings: dict[str, Any] = {
            "precision": default_precision(device),
            "sparsity": "constant",
            "batch_size": batch_size,
        }
        trainer = make_trainer(blocks, device, img_size=side, **settings)
        resident = pinned(random_batch(batch_size, side, classes), device)
        rate = batch_size / seconds_per_step(partial(trainer.train_step, [resident], 1e-4), device, steps)

        dataset = dataset_of(paths, classes, side, Augmentation())
        sampler = EpochSampler(len(dataset) // batch_size * batch_size, 0, batch_size)
        batches = Waiting(loader(dataset, batch_size, workers, sampler, device=device))
        count, began = 0, time.perf_counter()
        with Stopwatch(device):
            for batch in batches:
                trainer.train_step([batch], 1e-4)
                count += batch_size
        seconds = time.perf_counter() - began
        share = batches.seconds / seconds
        print(
            f"training, batch {batch_size}, {side} pixels: {rate:.1f} images/s with a resident batch, "
            f"{count / seconds:.1f} with {workers} workers, waiting for them {share:.0%} of the time"
        )


def seconds_per_step(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """The mean time of a step, with as many queued as the device takes."""
    for _ in range(min(WARM_UP, steps)):
        step()
    with Stopwatch(device) as watch:
        for _ in range(steps):
            step()
    return watch.seconds / steps


@torch.inference_mode()
def print_inference_speed(
    device: torch.device, blocks: list[Block], batch_sizes: Sequence[int], ratio: float = 0.7, rounds: int = 30
) -> None:
    """Forward passes of the full network against the pruned one, with and without rounding of channels."""
    torch.manual_seed(0)
    full = randomize(Darknet(blocks), near_zero=ratio).to(device)
    networks = {"full": full}
    for multiple in (1, 8):
        networks[f"pruned, --round_to {multiple}"] = Pruner(full, "slim", round_to=multiple).at(ratio).pruned.model
    forms: dict[str, nn.Module | Callable] = {name: Inference(model) for name, model in networks.items()}
    for batch_size in batch_sizes:
        images = torch.rand(batch_size, 3, full.spec.height, full.spec.width, device=device)
        variants = dict(forms)
        if device.type == "cuda":
            for name, form in forms.items():
                variants[f"{name}, CUDA graph"] = captured(form, images)
            name = "pruned, --round_to 8"  # compiling the full network takes minutes
            variants[f"{name}, torch.compile"] = Inference(networks[name], compiled=True)
        shown = {}
        for name, network in variants.items():
            try:
                network(images)
            except InputError as error:  # torch.compile without a compiler for C
                print(f"{name}: {error}")
            else:
                shown[name] = network
        steps = [partial(network, images) for network in shown.values()]
        timings = time_in_turns(steps, device, rounds, WARM_UP)
        for name, timing in zip(shown, timings, strict=True):
            macs = next((m.spec.macs / 1e9 for key, m in networks.items() if name.startswith(key)), 0)
            speed_up = timings[0].median / timing.median
            print(f"forward, batch {batch_size}: {name}: {timing}, {macs:.2f} G MACs, {speed_up:.2f} times as fast")


def captured(network: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The forward pass as a CUDA graph, which is launched as one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = network(images)

    def replay(_: Tensor) -> Tensor:
        graph.replay()
        return output

    return replay
