"""What a GPU must do like a CPU; every check runs on any device, so that test_checks.py tries it without a GPU."""

import contextlib
import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import train
from config.networks import create_cfg
from models import Darknet
from tests.networks import lively, randomize
from tests.scene import make_project
from tests.stepping import SIZE, make_trainer, random_batch, small_network
from utils.boxes import check_nms
from utils.data.data_config import read_data_config
from utils.detection.checkpoints import load_weights, read_checkpoint
from utils.detection.description import describe
from utils.detection.detector import load_model
from utils.detection.evaluate import evaluate, validation_batches
from utils.detection.inference import Inference
from utils.detection.loss import YoloLoss
from utils.detection.runtimes import prediction_difference
from utils.devices import autocast, memory_advice, smaller_batch, without_tf32
from utils.errors import InputError
from utils.export.onnx import export_onnx
from utils.export.quantization import FORMS, quantize
from utils.export.tensorrt import build_engine, input_shapes
from utils.pruning.proof import TOLERANCE, prove
from utils.pruning.prune_in_training import KeptChannels
from utils.pruning.pruner import Pruner
from utils.sizes import Size
from utils.training.distillation import Distillation

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def loss_and_gradients(
    device: torch.device, precision: str = "full", channels_last: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[float, dict[str, Tensor]]:
    """Loss of a small residual network with a teacher on one batch, and its gradients, as float64 on the CPU."""
    torch.manual_seed(0)
    blocks = small_network("v3", 0.0625)
    models = [lively(Darknet(blocks), seed) for seed in (0, 1)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, teacher = (network.to(device, dtype, memory_format=layout) for network in models)
    images, targets = random_batch(4)
    images = (images.to(device).to(dtype) / 255).contiguous(memory_format=layout)
    loss = YoloLoss(model)
    with without_tf32():
        with autocast(device, precision):
            raw = model.train()(images)
        value, _ = loss(raw, loss.assign(targets, SIZE), SIZE)
        value = value + Distillation(model, teacher.requires_grad_(False), precision)(raw, images)
        value.backward()
    return value.item(), {name: p.grad.double().cpu() for name, p in model.named_parameters()}


def check_parity(device: torch.device, channels_last: bool) -> None:
    """Loss and gradients are the CPU's, in float32 without TF32; with bfloat16 they are near."""
    expected, gradients = loss_and_gradients(CPU, channels_last=channels_last)
    value, actual = loss_and_gradients(device, channels_last=channels_last)
    assert value == pytest.approx(expected, rel=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-2, atol=1e-3 * largest, msg=name)
    mixed, _ = loss_and_gradients(device, "mixed", channels_last)
    assert mixed == pytest.approx(expected, rel=0.02)
    assert mixed != expected


SYNC_SETTINGS = [
    {},
    {"precision": "mixed"},
    {"precision": "mixed", "teacher": True},
    {"multiscale_training": True},
    {"channels_last": False},
    {"sparsity": "constant"},
    {"sparsity": "local", "method": "subgradient"},
    {"sparsity": "target"},
]


@contextlib.contextmanager
def refusing_to_wait(device: torch.device) -> Iterator[None]:
    """A context in which an operation that makes the host wait for the GPU is an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def pinned(batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch in pinned memory, as the loader gives it where there is a GPU."""
    return (batch[0].pin_memory(), batch[1].pin_memory()) if device.type == "cuda" else batch


def check_steps_do_not_wait(device: torch.device, **settings) -> None:
    """A step of two parts, with the sums of the epoch, takes no number from the device; nor does one after a cut."""
    trainer = make_trainer(small_network(), device, prune_every=1, **settings)
    trainer.kept_channels = KeptChannels(trainer.model.spec)
    parts = [pinned(random_batch(seed=seed), device) for seed in range(2)]

    def steps(count: int) -> None:
        for _ in range(count):
            _, reports = trainer.train_step(parts, 0.01)
            for report in reports:
                trainer.progress.add(report)

    steps(1)
    with refusing_to_wait(device):
        steps(3)
    trainer.check_finite()
    if trainer.penalty and trainer.penalty.method == "proximal":
        with torch.no_grad():
            for norm in trainer.model.batch_norms.values():
                norm.weight[::2] = 0
        trainer.penalty.copy_zeros(trainer.ema.model)
        assert trainer.prune() > 0
        trainer.model.train()
        trainer.step = 11  # no control of the strength follows
        steps(1)
        with refusing_to_wait(device):
            steps(3)


@contextlib.contextmanager
def float16_training() -> Iterator[None]:
    """A context in which mixed precision is float16, as on a GPU without bfloat16."""
    with (
        patch("utils.training.trainer.amp_dtype", lambda device: torch.float16),
        patch("utils.devices.amp_dtype", lambda device: torch.float16),
    ):
        yield


def check_overflow_and_recovery(device: torch.device) -> None:
    """A step that overflows in float16 changes neither weights nor average; the steps after it train on."""
    with float16_training():
        trainer = make_trainer(small_network(), device, precision="mixed", sparsity="constant")
        trainer.scaler = torch.amp.GradScaler(device.type, init_scale=2.0**60)
        batch = pinned(random_batch(), device)

        def state() -> dict[str, Tensor]:
            networks = {"network": trainer.model, "average": trainer.ema.model}
            named = [(part, *item) for part, network in networks.items() for item in network.named_parameters()]
            return {f"{part} {name}": parameter.detach().clone() for part, name, parameter in named}

        before = state()
        trainer.train_step([batch], 0.01)
        assert trainer.scaler.get_scale() == 2.0**59
        assert all(torch.equal(value, before[name]) for name, value in state().items())
        losses = []
        for _ in range(120):
            losses.append(trainer.train_step([batch], 0.01)[0])
        trainer.check_finite()
        assert all(value.isfinite().all() for value in state().values())
        assert float(losses[-1]) < 0.7 * float(losses[0])
        with refusing_to_wait(device):
            for _ in range(3):
                trainer.train_step([batch], 0.01)


def check_inference(device: torch.device) -> None:
    """Inference, in float16 on a GPU, gives float32's scores to 5e-3."""
    model = lively(Darknet(small_network("v3", 0.125))).to(device)
    images = random_batch(8)[0].to(device).float() / 255
    with torch.inference_mode(), without_tf32():
        expected = model(images)
    with torch.inference_mode():
        actual = Inference(model)(images)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual[..., 4:], expected[..., 4:], rtol=0, atol=5e-3)


def check_proof(device: torch.device) -> list[float]:
    """The proof of pruning holds; in float64 the gap is only that of rounding. Returns both gaps."""
    gaps = []
    for dtype in (torch.float32, torch.float64):
        model = randomize(Darknet(create_cfg("v3", 1, SIZE, 0.125))).to(device)
        result = Pruner(model, "slim").at(0.6)
        reference, compact = result.reference.to(dtype), result.pruned.model.to(dtype)
        assert sum(result.counts.values()) < sum(layer.channels for layer in model.spec.convolutions)
        if dtype == torch.float32:
            gaps.append(prove(reference, compact, SIZE))
        else:
            gaps.append(float64_gap(reference, compact, device))
    assert gaps[0] <= TOLERANCE
    assert gaps[1] < 1e-6  # the constants were folded in float32
    return gaps


@torch.inference_mode()
def float64_gap(reference: Darknet, compact: Darknet, device: torch.device) -> float:
    """The largest difference of the raw outputs, as a share of the largest."""
    images = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64, device=device)
    pairs = zip(reference.eval().raw_outputs(images), compact.eval().raw_outputs(images), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


@torch.no_grad()
def check_reconstruction(device: torch.device) -> float:
    """What a cut leaves is fitted to the same kernels as on the CPU. Returns the gap of the raw outputs."""
    whole = lively(Darknet(create_cfg("v3", 1, SIZE, 0.125)))
    images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    outputs = []
    for place in (CPU, device):
        pruner = Pruner(copy.deepcopy(whole).to(place), "slim", kind="magnitude", images=images.to(place))
        outputs.append(pruner.finished(pruner.at(0.3)).cpu().raw_outputs(images))
    gap = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*outputs, strict=True))
    assert gap < 1e-3
    return gap


def run_training(device: torch.device, *words: str) -> None:
    """train.py in the current folder, on ``device``."""
    options = ["--device", device.type, "--n_cpu", "0", "--batch_size", "4", "--evaluation_interval", "5", *words]
    with patch("train.plot_training", lambda rows, gammas, folder: None):
        train.main(train.get_args_parser().parse_args(options))


def check_training_and_checkpoints(device: torch.device, folder: Path, epochs: int = 20) -> None:
    """A run learns; its checkpoint detects the same on the CPU; a run that stopped goes on, there and on the CPU."""
    with contextlib.chdir(make_project(folder, train=24, valid=8)):
        words = ["--epochs", str(epochs), "--mosaic", "0", "--checkpoint_interval", "1"]
        with patch("train.evaluate", stop_at(2, train.evaluate)), pytest.raises(InterruptedError):
            run_training(device, *words, "--name", "run")
        state = read_checkpoint("checkpoints/run_last.pth")
        assert 0 < state["epoch"] < epochs
        run_training(device, "--resume", "--name", "run")
        checkpoint = read_checkpoint("checkpoints/run_last.pth")
        assert checkpoint["epoch"] == epochs
        assert checkpoint["best_map"] > state["best_map"]

        means = []
        for place in (device, CPU):
            model = Darknet("config/yolov3-hand.cfg")
            load_weights(model, "checkpoints/run_ckpt.pth")
            data = read_data_config("config/oxfordhand.data")
            batches, _ = validation_batches(model, data, SIZE, 4, 0)
            means.append(evaluate(model.to(place).eval(), batches, data.names)[0].mAP)
        assert means[0] == pytest.approx(means[1], abs=0.005)  # on a GPU in float16
        print(f"mAP@0.5 after {epochs} epochs: {means[0]:.4f} on {device}, {means[1]:.4f} on the CPU")

        # A run that began on one device goes on on the other.
        for first, second, name in ((device, CPU, "leaving"), (CPU, device, "coming")):
            short = ["--epochs", "10", "--mosaic", "0", "--checkpoint_interval", "1", "--precision", "full"]
            with patch("train.evaluate", stop_at(1, train.evaluate)), pytest.raises(InterruptedError):
                run_training(first, *short, "--name", name)
            run_training(second, "--resume", "--name", name)
            assert read_checkpoint(f"checkpoints/{name}_last.pth")["epoch"] == 10


def stop_at(call: int, function):
    """A function that is interrupted at its call number ``call``."""
    calls = []

    def wrapper(*args, **options):
        calls.append(1)
        if len(calls) == call:
            raise InterruptedError
        return function(*args, **options)

    return wrapper


def check_full_memory(device: torch.device) -> None:
    """A batch that does not fit ends in one line that says what to change; a smaller one then works."""
    model = Darknet(small_network("v3", 0.25)).to(device)
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        images = torch.zeros(1, 3, 2048, 2048, device=device).expand(64, -1, -1, -1)
        advice = memory_advice(smaller_batch(64, 2048))
        with pytest.raises(InputError, match="the GPU's memory is too small: try --batch_size 32") as error, advice:
            model.train()(images)
        assert "\n" not in str(error.value)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del error, images
    torch.cuda.empty_cache()
    model.eval()(torch.zeros(1, 3, SIZE, SIZE, device=device))


def check_torchrun(device: torch.device, folder: Path, processes: int) -> None:
    """torchrun trains, cuts and evaluates in several processes; a single one at least exchanges with itself."""
    make_project(folder, train=16, valid=6)
    words = ["--epochs", "2", "--n_cpu", "0", "--batch_size", "8", "-sr", "--s", "0.5", "--prune_every", "1", "--force"]
    words += ["--device", device.type, "--name", "many", *(["--sync_bn"] if device.type == "cuda" else [])]
    torchrun(folder, processes, [sys.executable, str(ROOT / "train.py"), *words])
    assert read_checkpoint(folder / "checkpoints/many_last.pth")["epoch"] == 2
    torchrun(folder, 1, [sys.executable, "-c", EXCHANGE, device.type])


EXCHANGE = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from utils import distributed
distributed.join(use_gpus=sys.argv[1] == "cuda")
values = torch.ones(2, device=sys.argv[1])
dist.all_reduce(values)
DistributedDataParallel(torch.nn.Linear(2, 2).to(sys.argv[1]))(values).sum().backward()
assert values.tolist() == [1, 1]
dist.destroy_process_group()
"""


def torchrun(folder: Path, processes: int, command: list[str]) -> None:
    """Run a command in several processes, which must succeed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(
        [*launcher, "--no-python", "--", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert outcome.returncode == 0, outcome.stderr[-4000:]


def check_environment(device: torch.device) -> None:
    """torch and torchvision belong together; prints what the other results depend on."""
    check_nms(device)
    print(f"\ntorch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        bf16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
        print(
            f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16} bf16"
        )
    raw = Darknet(small_network()).to(device).train()(torch.zeros(2, 3, SIZE, SIZE, device=device))
    assert {output.device.type for output in raw} == {device.type}


def check_engine(folder: Path, int8: bool) -> float:
    """A TensorRT engine of a small network finds what PyTorch finds, in batches of all sizes; the largest difference.

    It is that of a score, or of a box relative to its pixels, among boxes that score at least 0.25.
    """
    model = lively(randomize(Darknet(create_cfg("v3-tiny", 1, SIZE, width=0.25)), near_zero=0))
    proto = export_onnx(model, ["hand"], SIZE, half=True)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(7, 3, SIZE, SIZE, generator=random)
    if int8:
        proto = quantize(proto, model.spec, images.split(1), outputs=FORMS["tensorrt"].outputs)
    engine = build_engine(proto, input_shapes(Size.of(SIZE), largest_batch=4))
    path = folder / "a.engine"
    path.write_bytes(engine)
    path.with_suffix(".json").write_bytes(describe(model, ["hand"], SIZE, {".engine": engine}))
    network, _ = load_model(str(path), None, (0.25, 0.5))
    with torch.inference_mode():
        expected, whole = model(images), network(images)  # in two batches, of 4 and of 3
        alone = torch.cat([network(image) for image in images.split(1)])
        gap = prediction_difference(expected, whole, min_score=0.25)
        assert gap is not None
        assert gap <= (0.3 if int8 else 0.05)
        assert prediction_difference(whole, alone, min_score=0.25) <= 0.02
        assert prediction_difference(network(images.cuda()).cpu(), whole, min_score=0.25) == 0
    with pytest.raises(InputError, match="exported for images of"):
        network(torch.zeros(1, 3, SIZE, 2 * SIZE))
    path.write_bytes(engine[:-1])
    with pytest.raises(InputError, match="damaged"):
        load_model(str(path), None, (0.25, 0.5))
    return gap
