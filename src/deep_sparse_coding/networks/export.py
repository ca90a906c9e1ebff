"""`export_onnx`: a network as an ONNX file, written only after ONNX Runtime has agreed with it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import require_float_tensor, require_number
from ..errors import DSCError, ParameterError, ShapeError, UnsupportedError, missing_extra
from ..files import write_whole

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Images of other sizes are looked for up to so many entries more: strides rarely are larger.
_LARGEST_STEP = 64
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


def export_onnx(net: nn.Module, path: str | os.PathLike[str], *, example: Tensor, tolerance: float = 1e-5) -> float:
    """Write a network as an ONNX file, and say how far ONNX Runtime's codes are from torch's.

    The batch and the size of images stay free where the network allows it, else the batch, else neither; the file's
    input says which. Both are run on the example, and on a batch of another size where that is free.

    Args:
        net: A network that takes one tensor: of `to_cnn`, `to_transformer`, `unfold`, or any other. It is exported as
            in evaluation, and left as it was.
        path: Where; a file that is there is replaced, its folder must exist. Nothing is written unless both agree.
        example: What the network takes, with its batch axis first.
        tolerance: The largest difference that is accepted, relative to the largest entry of the output.

    Returns:
        The largest difference found, relative to the largest entry of torch's output (absolute if that is zero).

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ParameterError: Not a module, a tolerance out of range, or an example without entries.
        UnsupportedError: The network cannot be exported, ONNX Runtime cannot run it (it has no float64 convolutions:
            export ``net.float()``), or the two do not agree.
        FileFormatError: The folder does not exist or cannot be written.

    Source: https://onnx.ai; the comparison is that of "Rounding" in docs/theory.md.
    """
    if not isinstance(net, nn.Module):
        raise ParameterError(f"net is a {type(net).__name__}; expected a torch.nn.Module")
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "onnx", "export_onnx")
    tolerance = require_number("tolerance", tolerance, minimum=0.0)
    example = require_float_tensor("example", example).detach()
    if example.ndim < 2 or not example.numel():
        raise ParameterError(
            f"example has shape {tuple(example.shape)}; expected (batch, ...) with at least one entry: the batch axis "
            "comes first"
        )
    path = Path(path)
    training = {name: module.training for name, module in net.named_modules()}
    net.eval()
    try:
        content, found = _export(net, example, tolerance)
    finally:
        for name, module in net.named_modules():
            module.training = training[name]
    write_whole(path, content)
    return found


def _export(net: nn.Module, example: Tensor, tolerance: float) -> tuple[bytes, float]:
    """Return the file's content with as many free axes as the network allows, and the largest difference found.

    Raises:
        UnsupportedError: Nothing could be exported, run, or was near enough; the reason is that of the last attempt.
    """
    names = ("height", "width", "depth") if example.ndim > 3 else ("length",)
    sizes = {axis: names[axis - 2] for axis in range(2, min(example.ndim, 2 + len(names)))}
    attempts: list[dict[int, str]] = [{0: "batch"}, {}]
    others = _other_size(net, example) if sizes else []
    if others:
        attempts.insert(0, {0: "batch", **sizes})
    # A batch of one is taken for a constant: the exporter needs two to see that it may vary.
    several = torch.cat([example, -0.5 * example])
    failure: Exception | None = None
    for axes in attempts:
        trials = [example]
        if axes:
            trials.append(several[: len(example) + 1])
        if len(axes) > 1:
            trials += others
        try:
            content = _attempt(net, several if axes else example, axes)
            found = max(_difference(net, content, trial) for trial in trials)
        except Exception as error:  # the exporter's errors have no common class
            failure = error
            continue
        if found <= tolerance:
            return content, found
        failure = UnsupportedError(
            f"ONNX Runtime's output differs from torch's by {found:.3g} relative to its largest entry; expected at "
            f"most {tolerance:g}: nothing was written; a larger tolerance lets it pass"
        )
    if isinstance(failure, DSCError):
        raise failure
    reason = str(failure).strip().splitlines()
    raise UnsupportedError(
        f"the network cannot be exported: {reason[0] if reason else type(failure).__name__}; expected standard layers "
        "and no control flow that depends on values"
    ) from failure


def _other_size(net: nn.Module, example: Tensor) -> list[Tensor]:
    """Return the example, mirrored and continued to the next larger size that the network takes; nothing if none."""
    for more in range(1, _LARGEST_STEP + 1):
        larger = example
        for axis in range(2, example.ndim):
            longer = torch.arange(example.shape[axis] + more, device=example.device) % example.shape[axis]
            larger = larger.index_select(axis, longer.flip(0))
        try:
            with torch.no_grad():
                net(larger)
        except (DSCError, RuntimeError):
            continue
        return [larger]
    return []


def _attempt(net: nn.Module, example: Tensor, axes: dict[int, str]) -> bytes:
    """Return the content with these axes free.

    Raises:
        ValueError: The exporter made one of them a constant.
    """
    shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),) if axes else None
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            net,
            (example,),
            input_names=["signal"],
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
            external_data=False,
        )
        assert program is not None, "the exporter returns a program where it is given no file"
        model = program.model_proto
    given = model.graph.input[0].type.tensor_type.shape.dim
    for axis, name in axes.items():
        if given[axis].WhichOneof("value") == "dim_value":
            raise ValueError(f"axis {axis} ({name}) became the constant {given[axis].dim_value}")
    renamed = {given[axis].dim_param: name for axis, name in axes.items()}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = _SYMBOL.sub(lambda found: renamed.get(found.group(), found.group()), dim.dim_param)
    return model.SerializeToString()


def _difference(net: nn.Module, content: bytes, signal: Tensor) -> float:
    """Return the largest difference of the two outputs over torch's largest entry.

    Raises:
        UnsupportedError: ONNX Runtime cannot run the file.
        ShapeError: It returns something of another shape.
    """
    import onnxruntime

    with torch.no_grad():
        expected = net(signal)
    outputs: Sequence[Tensor] = expected if isinstance(expected, tuple | list) else (expected,)
    try:
        with _quiet():
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            computed = session.run(None, {name: signal.cpu().numpy()})
    except Exception as error:  # the runtime's errors have no common public class
        precise = signal.dtype == torch.float64
        advice = "it lacks kernels for float64, among them convolutions: export net.float()" if precise else str(error)
        raise UnsupportedError(f"ONNX Runtime cannot run the network: {advice}") from error
    worst = 0.0
    for want, have in zip(outputs, computed, strict=True):
        got = torch.as_tensor(have).to(torch.float64)
        if got.shape != want.shape:
            raise ShapeError(f"ONNX Runtime returns shape {tuple(got.shape)}; expected {tuple(want.shape)}, as torch")
        if not want.numel():
            continue
        exact = want.detach().cpu().double()
        scale = float(exact.abs().max())
        difference = float((got - exact).abs().max())
        relative = difference / scale if scale > 0 else difference
        # A NaN in either is no agreement.
        worst = relative if not relative <= worst else worst
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter prints, warns of and logs."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
