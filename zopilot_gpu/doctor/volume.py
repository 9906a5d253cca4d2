"""The checks of the model's files: what was found, on what, and how fast it reads. Computes only."""

from zopilot_gpu.doctor.facts import Facts, Volume
from zopilot_gpu.doctor.report import Check
from zopilot_gpu.store.locate import MOUNTS

_CONTAINER = {"overlay", "overlayfs", "fuse-overlayfs"}
_SLOW_START_S = 300  # RunPod calls a worker unhealthy after seven minutes
_PREPARE = "`zopilot-gpu prepare --download` fetches and packs it once for all starts."


def model(facts: Facts) -> Check:
    """What the store finds."""
    found = facts.found
    if found is None:
        reason = facts.not_found or "Nothing was found."
        if facts.settings.allow_download:
            return Check(
                "model", "warn", "missing", reason, "The start downloads it; `zopilot-gpu prepare` does so beforehand."
            )
        return Check("model", "fail", "missing", reason, _PREPARE)
    value = f"{found.name}, {found.kind}, {found.num_bytes / 1e9:.2f} GB"
    if found.pack_bytes:
        reason = (
            f"It is not packed: each start reads {found.num_bytes / found.pack_bytes:.1f} times as much as it would have to."
        )
        return Check(
            "model", "warn", value, reason, "`zopilot-gpu prepare` packs it once; so does the first service that may write."
        )
    return Check("model", "ok", value, f"It is below {found.directory}.")


def volume(facts: Facts) -> Check:
    """Where the files are, or would be."""
    where, found = facts.volume, facts.found
    if where is None:
        return Check("volume", "ok", "none", "The demo model comes with the code: no volume is needed.")
    if not where.is_there:
        mount_it = "Mount the volume there, or name its mount in ZOPILOT_GPU_VOLUME or HF_HOME."
        return Check("volume", "fail", f"{where.path}", f"{where.path} is not there.", mount_it)
    writing = "writable" if where.is_writable else "read-only" if where.mount.read_only else "not writable by this user"
    value = f"{where.path}, {where.mount.kind} mounted at {where.mount.point}, {writing}, {where.free_bytes / 1e9:.1f} GB free"
    own_disk = where.mount.point == "/"
    if own_disk and (where.path in MOUNTS or where.path == facts.settings.volume or where.mount.kind in _CONTAINER):
        reason = f"Nothing is mounted at {where.path}: it is a directory of the container's own disk, and goes with it."
        return Check("volume", "warn" if found else "fail", value, reason, "Mount the volume there.")
    return _to_write(facts, where, value, writing)


def _to_write(facts: Facts, where: Volume, value: str, writing: str) -> Check:
    found = facts.found
    to_write = found.pack_bytes if found else 0
    downloads = found is None and facts.settings.allow_download
    if downloads and not where.is_writable:
        return Check(
            "volume", "fail", value, "The model is to be downloaded, and nothing can be written there.", _writable(writing)
        )
    if to_write and not where.is_writable:
        return Check(
            "volume", "warn", value, "The model can't be packed there: each start will read its source.", _writable(writing)
        )
    if to_write > where.free_bytes or (downloads and where.free_bytes < 1e9):
        reason = f"There is no room for {f'the packed form ({to_write / 1e9:.1f} GB)' if to_write else 'a download'}."
        remedy = "Make room, or name another volume in ZOPILOT_GPU_VOLUME."
        return Check("volume", "fail" if downloads else "warn", value, reason, remedy)
    return Check("volume", "ok", value, "It has what a start needs." if found else "It can take the model.")


def speed(facts: Facts) -> Check | None:
    """The measured read, and the start that it makes for."""
    found = facts.found
    if found is None:
        return None
    if facts.speed is None:
        return Check("speed", "ok", "not measured", f"A start reads {found.num_bytes / 1e9:.2f} GB.")
    rate = facts.speed.bytes_per_s
    load_s = found.num_bytes / rate
    value = f"{rate / 1e9:.2f} GB/s ({facts.speed.num_bytes / 1e6:.0f} MB in {facts.speed.seconds:.1f} s)"
    reason = f"A start reads {found.num_bytes / 1e9:.1f} GB, which takes {load_s:.0f} s."
    if load_s <= _SLOW_START_S:
        return Check("speed", "ok", value, reason)
    if found.pack_bytes:
        reason = f"{reason} Packed it would be {found.pack_bytes / rate:.0f} s."
        return Check("speed", "warn", value, reason, "Pack the model (`zopilot-gpu prepare`), or take a faster volume.")
    return Check("speed", "warn", value, reason, "Take a faster volume.")


def _writable(writing: str) -> str:
    if writing == "read-only":
        return "It is mounted read-only: run `zopilot-gpu prepare` once where it is writable."
    return "Let this user write there, or run `zopilot-gpu prepare` once as one who may."
