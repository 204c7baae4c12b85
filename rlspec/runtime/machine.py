"""What works on this machine, and the remedy for what does not.

`python -m rlspec.runtime.machine NAME` runs one check in a process of its own and prints it as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from rlspec.config.extras import install

_SECONDS = 60.0  # for one check; a second or two where the machine is idle and its disk warm
_GIB = 2**30
_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "lerobot", "gymnasium", "mujoco", "hf-libero")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: Of the check.
        status: `fail`: broken; `warn`: absent or slower than it could be.
        detail: What was found.
        remedy: What to do; empty where nothing is to be done.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Run all checks. Those that load libraries run in processes of their own, side by side."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        probes = {name: pool.submit(probe_apart, name) for name in PROBES}
        findings = [guarded(name, check) for name, check in CHECKS.items()]
        return findings + [probe.result() for probe in probes.values()]


def guarded(name: str, check: Callable[[], Finding]) -> Finding:
    """A check whose own failure is a finding as well."""
    try:
        return check()
    except Exception as error:  # a doctor does not faint
        text = " ".join(str(error).split())[:300]
        return Finding(
            name, "fail", f"{type(error).__name__}: {text}", f"reinstall with {install()}, or report this line"
        )


def probe_apart(name: str) -> Finding:
    """A check in a process of its own, which may crash or hang."""
    command = [sys.executable, "-m", "rlspec.runtime.machine", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        # Only a GL driver is known to hang; the others wait for the disk or the processor.
        status: Literal["warn", "fail"] = "fail" if name == "renderer" else "warn"
        return Finding(
            name, status, f"no answer within {_SECONDS:g} s", "the machine is busy, or a driver hangs; retry"
        )
    try:
        return Finding(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = f"reinstall with {install()}, or report this line"
        return Finding(name, "fail", f"the check ended with code {done.returncode}: {last[:300]}", remedy)


def check_python() -> Finding:
    """The interpreter."""
    version = platform.python_version()
    detail = f"{version} ({platform.system()} {platform.machine()}, {os.cpu_count()} cores)"
    if not (3, 12) <= sys.version_info[:2] < (3, 14):
        return Finding("python", "fail", detail, "use Python 3.12 or 3.13")
    return Finding("python", "ok", detail)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _asks(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _wanted_extras() -> list[str]:
    """The base and those extras of which more than half is there: torch alone may be newer than training allows."""
    lines = _requirements()
    own = {extra: [each for each in lines if not _asks(each, "") and _asks(each, extra)] for extra in _extras()}
    there = {extra: sum(_version(each.name) is not None for each in asked) for extra, asked in own.items()}
    return ["", *(extra for extra, asked in own.items() if there[extra] > len(asked) / 2)]


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in metadata.requires("rlspec") or []]


def _extras() -> list[str]:
    return metadata.metadata("rlspec").get_all("Provides-Extra") or []


def check_libraries() -> Finding:
    """Installed versions against what pyproject.toml asks for."""
    wrong, found, absent = [], [], []
    wanted = _wanted_extras()
    for requirement in _requirements():
        version = _version(requirement.name)
        if version is None:
            absent.append(requirement)
        elif not requirement.specifier.contains(version, prereleases=True):
            if any(_asks(requirement, extra) for extra in wanted):
                wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
        elif requirement.name in _LIBRARIES:
            found.append(f"{requirement.name} {version}")
    missing = [each.name for each in absent if each.marker is None or "extra" not in str(each.marker)]
    if wrong or missing:
        detail = ", ".join([*wrong, *(f"{name} is missing" for name in missing)])
        return Finding("libraries", "fail", detail, f"install what pyproject.toml names: {install(*wanted[1:])}")
    beside = '"smollm"'  # a model's weights and no library: not in the extra `all`
    optional = sorted({each.name for each in absent if beside not in str(each.marker)} - {"rlspec"})
    if optional:
        remedy = f"needed by some commands: {install('all')}"
        return Finding("libraries", "warn", f"not installed: {', '.join(optional)}", remedy)
    return Finding("libraries", "ok", ", ".join(dict.fromkeys(found)))


def check_recipes() -> Finding:
    """Whether the recipes are installed beside the code."""
    from rlspec.config.paths import GROUPS, list_group, list_recipes, recipes_folder

    options = sum(len(list_group(group)) for group in GROUPS)
    names = list_recipes()
    status: Literal["ok", "fail"] = "ok" if names and options else "fail"
    detail = f"{len(names)} recipes, {options} options of {len(GROUPS)} groups in {recipes_folder()}"
    return Finding("recipes", status, detail, "" if names else f"install rlspec with {install()}")


def check_disk() -> Finding:
    """Room for checkpoints, data and the hub's cache, as far as they lie on different disks."""
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    places = {"here": Path.cwd(), "hub cache": cache, "temporary": Path(os.environ.get("TMPDIR", "/tmp"))}
    free = {name: shutil.disk_usage(_existing(place)).free / _GIB for name, place in places.items()}
    detail = ", ".join(f"{name} {amount:.1f} GiB free" for name, amount in free.items())
    least = min(free.values())
    if least < 1:
        return Finding("disk", "fail", detail, "free some space, or set output_dir, HF_HOME or TMPDIR to another disk")
    if least < 10:
        return Finding("disk", "warn", detail, "checkpoints of large policies and LIBERO's assets need more")
    return Finding("disk", "ok", detail)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def probe_torch() -> Finding:
    """Torch, CUDA and bfloat16."""
    try:
        import torch
    except ImportError as error:
        return Finding("torch", "warn", f"not usable: {error}", f"for training: {install('train')}")
    version = torch.__version__
    if not torch.cuda.is_available():
        detail = f"{version}, no CUDA device, {torch.get_num_threads()} CPU threads"
        if any(Path("/dev").glob("nvidia[0-9]*")):
            return Finding(
                "torch", "fail", detail, "there is a GPU: install an NVIDIA driver that knows this torch's CUDA"
            )
        return Finding("torch", "ok", detail)
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16 (set training.bf16=false)"
    names = ", ".join(f"{card.name} {card.total_memory / _GIB:.0f} GiB" for card in cards)
    return Finding("torch", "ok", f"{version}, CUDA {torch.version.cuda}: {names}, {bf16}")


_SCENE = """<mujoco><worldbody><light pos="0 0 3"/><camera name="eye" pos="0 0 1"/>
<geom type="sphere" size=".2" rgba="1 0 0 1"/></worldbody></mujoco>"""


def probe_renderer() -> Finding:
    """One frame of a red ball."""
    try:
        import mujoco
    except ImportError as error:
        if "mujoco" not in str(error):
            raise
        return Finding("renderer", "warn", "mujoco is not installed", f"for simulators: {install('vla')}")
    except RuntimeError as error:  # MUJOCO_GL names no library
        return Finding("renderer", "fail", " ".join(str(error).split()), _GL_REMEDY)
    from rlspec_envs.errors import EnvironmentUnavailable
    from rlspec_envs.rendering import OffscreenRenderer, choose_gl

    try:
        chosen = choose_gl()
        model = mujoco.MjModel.from_xml_string(_SCENE)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        renderer = OffscreenRenderer(model, 64, 64)
        red, green, _ = renderer.render(data, "eye")[32, 32]
        device = _gl_device()
        renderer.close()
    except EnvironmentUnavailable as error:
        return Finding("renderer", "fail", str(error), _GL_REMEDY)
    detail = f"{chosen} on {device}, mujoco {mujoco.__version__}"
    if not red > 2 * green:
        return Finding("renderer", "fail", f"{detail}: the picture is wrong", _GL_REMEDY)
    return Finding("renderer", "ok", detail)


_GL_REMEDY = "unset MUJOCO_GL, or set it to egl or osmesa; apt-get install libegl1 libgl1-mesa-dri (EGL) or libosmesa6"


def _gl_device() -> str:
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER)
    text = name.decode() if isinstance(name, bytes) else "an unnamed device"
    return f"{text} (software)" if any(word in text.lower() for word in ("llvmpipe", "softpipe")) else text


def probe_libero() -> Finding:
    """LIBERO's package, configuration and assets."""
    try:
        metadata.version("hf-libero")
    except metadata.PackageNotFoundError:
        return Finding("libero", "warn", "hf-libero is not installed", f"for LIBERO: {install('libero')}")
    from rlspec_envs.libero.diagnosis import describe_libero

    report: dict[str, Any] = describe_libero()
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    if problems := report["problems"]:
        detail = f"{versions}: {'; '.join(each['problem'] for each in problems)}"
        return Finding("libero", "warn", detail, "; ".join(dict.fromkeys(each["remedy"] for each in problems)))
    return Finding("libero", "ok", f"{versions}, assets {report['assets']} ({report['assets_source']})")


def probe_video() -> Finding:
    """Encode and decode a clip with PyAV; torchcodec is optional."""
    import io

    try:
        import av
        import numpy as np
    except ImportError as error:
        return Finding("video", "warn", f"not usable: {error}", f"for data sets and films: {install('vla')}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", 10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for shade in (0, 120, 240):
            frame = np.full((32, 32, 3), shade, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as clip:
        shades = [round(float(frame.to_ndarray(format="rgb24").mean())) for frame in clip.decode(video=0)]
    if len(shades) != 3 or abs(shades[1] - 120) > 8:
        return Finding("video", "fail", f"pyav {av.__version__} decodes {shades}", "reinstall the package av")
    return Finding("video", "ok", f"pyav {av.__version__} encodes and decodes H.264; {_torchcodec()}")


def _torchcodec() -> str:
    """Whether LeRobot's other decoder could be used; it needs FFmpeg's libraries."""
    try:
        version = metadata.version("torchcodec")
    except metadata.PackageNotFoundError:
        return "torchcodec is not installed (not needed)"
    from ctypes.util import find_library

    if find_library("avutil") is None:
        return f"torchcodec {version} lacks FFmpeg's libraries (not needed: video_backend is pyav)"
    return f"torchcodec {version} with FFmpeg"


# Checks that load nothing heavy, and those that do or that may crash. Another device is another line here.
CHECKS: dict[str, Callable[[], Finding]] = {
    "python": check_python,
    "libraries": check_libraries,
    "recipes": check_recipes,
    "disk": check_disk,
}
PROBES: dict[str, Callable[[], Finding]] = {
    "torch": probe_torch,
    "renderer": probe_renderer,
    "libero": probe_libero,
    "video": probe_video,
}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(PROBES[sys.argv[1]]())) + "\n")
